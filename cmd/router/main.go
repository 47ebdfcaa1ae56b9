// Command router is Millrace: a durable event router in one binary. It serves, and it is the client to a
// router that serves.
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

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == compileModule {
		os.Exit(plugins.CompileMain(os.Args[2:], os.Stdin, os.Stderr))
	}
	self, err := os.Executable()
	if err != nil { // without /proc or the like; modules are then compiled in the serving process
		self = ""
	}
	os.Exit(run(context.Background(), self, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Getenv))
}

// compileModule is what the router calls itself with to compile a module apart. It is no command of users.
const compileModule = "compile-module"

// What the program exits with.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

// A program is one run of the command line: what it reads, writes and is told by its surroundings. Nothing
// below run touches os.Stdin, os.Stdout, os.Args or the environment, so that tests can.
type program struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	env            func(string) string
	self           string // the program's file, to be started again; "" if it cannot
}

// compiler is the command that compiles modules in a process of their own.
func (p *program) compiler() []string {
	if p.self == "" {
		return nil
	}
	return []string{p.self, compileModule}
}

// run executes one command line and returns its exit code. The first SIGINT or SIGTERM ends the context
// that commands work under; a second one kills the process as if nobody listened.
func run(ctx context.Context, self string, args []string, stdin io.Reader, stdout, stderr io.Writer, env func(string) string) int {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	defer context.AfterFunc(ctx, stop)()

	p := &program{stdin: stdin, stdout: stdout, stderr: stderr, env: env, self: self}
	root := rootCommand(p)
	started := false
	noteStart(root, &started)
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitDone
	}
	if errors.Is(err, errDiffers) {
		return exitDiffers
	}
	var usage *usageError
	if !started { // cobra found fault with flags or arguments
		usage = &usageError{cmd, err}
	}
	if !errors.Is(err, errSaid) {
		fmt.Fprintf(stderr, "router: %s\n", lines(longError(err)))
	}
	if usage == nil && !errors.As(err, &usage) {
		return exitFailed
	}
	if usage.cmd != nil {
		fmt.Fprintf(stderr, "Usage: %s\nRun '%s --help' for more.\n", usage.cmd.UseLine(), usage.cmd.CommandPath())
	}
	return exitUsage
}

// longError is an error's text, with excerpts where faults have them.
func longError(err error) string {
	text := err.Error()
	var faults *event.Faults
	if errors.As(err, &faults) {
		text = strings.Replace(text, faults.Error(), faults.Long(), 1)
	}
	return text
}

// noteStart makes every command below cmd set started when it begins its own work, and say which arguments it wants
// where cobra only counts them.
func noteStart(cmd *cobra.Command, started *bool) {
	if args := cmd.Args; args != nil {
		cmd.Args = func(cmd *cobra.Command, given []string) error {
			if args(cmd, given) == nil {
				return nil
			}
			return fmt.Errorf("%s given; want %s", plural(len(given), "argument"), cmd.UseLine())
		}
	}
	if work := cmd.RunE; work != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			*started = true
			return work(cmd, args)
		}
	}
	for _, c := range cmd.Commands() {
		noteStart(c, started)
	}
}

// errSaid makes the program exit with 1 after a command has printed what is wrong by itself.
var errSaid = errors.New("already reported")

// usageError is a command line that cannot be acted on: exit code 2.
type usageError struct {
	cmd *cobra.Command // whose help would help; may be nil
	err error
}

func (u *usageError) Error() string { return u.err.Error() }
func (u *usageError) Unwrap() error { return u.err }

func usagef(cmd *cobra.Command, format string, args ...any) error {
	return &usageError{cmd, fmt.Errorf(format, args...)}
}

func rootCommand(p *program) *cobra.Command {
	root := &cobra.Command{
		Use:   "router",
		Short: "Millrace, a durable event router",
		Long: `Millrace takes events in, keeps them, matches them with filters, runs them through WASM functions and
delivers them as webhooks, queues or streams.

Commands that talk to a running router take --server and --token (or MILLRACE_URL and MILLRACE_TOKEN).`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetIn(p.stdin)
	root.SetOut(p.stdout)
	root.SetErr(p.stderr)
	root.AddCommand(commands(p)...)
	group(root)
	return root
}

// group makes a command that only holds others refuse to be run as one: cobra would print its help and
// report success, also for a subcommand that does not exist.
func group(cmd *cobra.Command) *cobra.Command {
	cmd.Args = cobra.ArbitraryArgs
	cmd.SuggestionsMinimumDistance = 2
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			cmd.SetOut(cmd.ErrOrStderr())
			if err := cmd.Help(); err != nil {
				return err
			}
			return &usageError{nil, errSaid}
		}
		hint := ""
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			hint = fmt.Sprintf("; did you mean %q?", near[0])
		}
		return usagef(cmd, "%q is not a command of %s%s", args[0], cmd.CommandPath(), hint)
	}
	return cmd
}
