package main

import (
	"fmt"
	"log"
	"time"
)

func main() {
	start := time.Now()
	s, err := openStage(func(f string, a ...any) { fmt.Printf(f+"\n", a...) })
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(since(start))
	for _, st := range stories {
		r, err := s.load(st.name, "")
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(st.name, r.Trace.Writes(), r.Trace.Flushes(), len(r.Trace.Ops))
	}
}
