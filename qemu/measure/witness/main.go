// Command witness is the system whose start ends the measured time. Its first act is a line in the kernel log, whose clock
// also stamped "Run /init as init process"; then it prints /run/lifeboat/boot.json and the end of the log on the serial
// port and switches the machine off. It has no Go runtime to start and few pages to read through dm-verity: built with
// -ldflags "-E main.witness" it begins in assembly, and main is never reached.
package main

// Started is the line in the kernel log.
const Started = "WITNESS STARTS"

func main() {}
