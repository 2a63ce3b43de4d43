package main

func witness()
