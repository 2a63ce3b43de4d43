package main

func page(rows []*Row, versions string) string { return "" }

func versionsOf() (string, error) { return "", nil }
