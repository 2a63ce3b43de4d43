package confine_test

import (
	"os"
	"testing"

	"lifeboat/confine"
)

func TestMain(m *testing.M) {
	if j := confine.Child(); j != nil {
		role(j)
	}
	os.Exit(m.Run())
}

func role(j *confine.Job) {
	switch j.Role {
	case "echo":
		_ = j.Send('e', j.Input)
	}
	j.Exit(nil)
}
