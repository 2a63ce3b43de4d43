package main

func writeReport(dir string, r *result, mutations, model string) error { return nil }
