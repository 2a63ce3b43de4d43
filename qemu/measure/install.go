package main

import "lifeboat/confine"

func installs(b *bench) error { return nil }
func memory(b *bench) error { return nil }
func work(j *confine.Job) error { return nil }
