package main

type killResult struct{}
