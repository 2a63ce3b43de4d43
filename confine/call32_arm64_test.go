package confine

func call32() {}
