// Command lifeboat is the developer's side of lifeboat: it makes keys, bundles, the initramfs and images of disks and
// sticks, looks into them, and runs a virtual device.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"lifeboat/verify"
)

// Exit status beside the codes of verify (20 to 40), which the commands have that judge a bundle.
const (
	exitFailure = 1
	exitUsage   = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}

// usage is an error in how the command was called.
type usage struct{ error }

func usagef(format string, args ...any) error { return usage{fmt.Errorf(format, args...)} }

// run runs the command and returns its exit status. Messages have the prefix "lifeboat: ", are in lower case and have no
// full stop; what can be done about an error stands in a line of its own.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := &cobra.Command{
		Use:           "lifeboat",
		Short:         "an updater in early boot: keys, bundles, images, a virtual device",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.AddCommand(newKeys(), newBundle(), newInitramfs(), newImage(), newStick(), newInspect(), newVM(), newPowercut(), newConfig(), newBootloader())
	running := false
	watch(root, &running)
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintf(stderr, "lifeboat: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
	var refused *verify.Refusal
	switch {
	case !running || errors.As(err, new(usage)):
		fmt.Fprintf(stderr, "hint: %s --help\n", cmd.CommandPath())
		return exitUsage
	case errors.As(err, &refused):
		if hint := verify.HintOf(err); hint != "" {
			fmt.Fprintf(stderr, "hint: %s\n", hint)
		}
		return int(refused.Code)
	}
	return exitFailure
}

// watch notes in running when a command has begun its work: an error before that is one of usage. A command that only
// has others below it is one too.
func watch(cmd *cobra.Command, running *bool) {
	for _, sub := range cmd.Commands() {
		watch(sub, running)
	}
	if work := cmd.RunE; work != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			*running = true
			return work(cmd, args)
		}
		return
	}
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usagef("%q needs a command", cmd.CommandPath())
		}
		return usagef("%q has no command %q", cmd.CommandPath(), args[0])
	}
}

// require marks flags as required; a name that is no flag is a mistake in this program.
func require(cmd *cobra.Command, names ...string) {
	for _, name := range names {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err)
		}
	}
}
