// Package cli is the frame that both programs hang their commands in: flags with defaults from the environment, help,
// and the two-line error form with its exit codes. It is the only importer of pflag.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/digestlock/digestlock/internal/fault"
)

// Env is everything of the process that a command may touch.
type Env struct {
	Lookup         func(string) (string, bool) // as os.LookupEnv
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Getenv returns the variable's value, "" when it is not set.
func (e Env) Getenv(name string) string {
	v, _ := e.Lookup(name)
	return v
}

// Command is one thing a program does.
type Command struct {
	Name  string
	Short string // one line for the list of commands
	Run   func(ctx context.Context, env Env, args []string) error
}

// Program is a set of commands under one name. With one command, it is that command.
type Program struct {
	Name     string
	Short    string
	Commands []Command
}

// Main runs the program for this process and exits: 0 ok, 1 could not do it, 2 called the wrong way.
func Main(p Program) {
	// A second signal ends the process at once, because stop restores the default.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	code := p.Run(ctx, Env{Lookup: os.LookupEnv, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}, os.Args[1:])
	stop()
	os.Exit(code)
}

// Run runs the program with args and returns its exit code.
func (p Program) Run(ctx context.Context, env Env, args []string) int {
	cmd, args, err := p.find(env, args)
	if err == nil {
		err = cmd.Run(ctx, env, args)
	}
	switch {
	case err == nil, errors.Is(err, pflag.ErrHelp):
		return 0
	default:
		text := fault.Text(p.Name, err)
		if env.Colours(env.Stderr) {
			text = paint(p.Name, text)
		}
		_, _ = io.WriteString(env.Stderr, text)
		if _, ok := errors.AsType[*usageError](err); ok {
			return 2
		}
		return 1
	}
}

func (p Program) find(env Env, args []string) (Command, []string, error) {
	if len(p.Commands) == 1 {
		return p.Commands[0], args, nil
	}
	var names []string
	for _, c := range p.Commands {
		if len(args) > 0 && c.Name == args[0] {
			return c, args[1:], nil
		}
		names = append(names, c.Name)
	}
	hint := fmt.Sprintf("the commands are %s; see %s --help", strings.Join(names, ", "), p.Name)
	switch {
	case len(args) == 0:
		return Command{}, nil, &usageError{fault.New(fault.Usage, hint, "no command given")}
	case args[0] == "help" || args[0] == "--help" || args[0] == "-h":
		p.help(env.Stdout)
		return Command{}, nil, pflag.ErrHelp
	}
	return Command{}, nil, &usageError{fault.New(fault.Usage, hint, "unknown command %q", args[0])}
}

func (p Program) help(w io.Writer) {
	_, _ = fmt.Fprintf(w, "%s\n\nUsage: %s COMMAND [FLAGS]\n\nCommands:\n", p.Short, p.Name)
	for _, c := range p.Commands {
		_, _ = fmt.Fprintf(w, "  %-10s %s\n", c.Name, c.Short)
	}
	_, _ = fmt.Fprintf(w, "\n\"%s COMMAND --help\" explains one. Every flag has a default from the environment: --%s is\n%s, and so on.\n",
		p.Name, "token-file", EnvName("token-file"))
}

// usageError is a mistake in how the program was called.
type usageError struct{ error }

func (e *usageError) Unwrap() error { return e.error }

// Usage returns an error that ends the program with exit code 2.
func Usage(hint, format string, args ...any) error {
	return &usageError{fault.New(fault.Usage, hint, format, args...)}
}

// Flags is one command's flags.
type Flags struct {
	*pflag.FlagSet
	command, usage string
}

// NewFlags returns the flags of command, "digestlock generate". Usage is its help: a line of arguments, an empty line,
// and what it does.
func NewFlags(command, usage string) *Flags {
	f := &Flags{FlagSet: pflag.NewFlagSet(command, pflag.ContinueOnError), command: command, usage: usage}
	f.Usage = func() {}
	f.SortFlags = true
	return f
}

// Parse reads args, then the environment for flags that args do not give, and returns the remaining arguments: at most maxArgs.
func (f *Flags) Parse(env Env, args []string, maxArgs int) ([]string, error) {
	hint := fmt.Sprintf("see \"%s --help\"", f.command)
	f.SetOutput(io.Discard)
	err := f.FlagSet.Parse(args)
	if errors.Is(err, pflag.ErrHelp) {
		_, _ = fmt.Fprintf(env.Stdout, "Usage: %s %s\n\nFlags:\n%s", f.command, f.usage, f.FlagUsages())
		return nil, err
	}
	if err != nil {
		return nil, Usage(hint, "%w", err)
	}
	f.VisitAll(func(fl *pflag.Flag) {
		v, ok := env.Lookup(EnvName(fl.Name))
		if !ok || fl.Changed || err != nil {
			return
		}
		if bad := f.Set(fl.Name, v); bad != nil {
			err = Usage(hint, "environment variable %s: %w", EnvName(fl.Name), bad)
		}
	})
	if err != nil {
		return nil, err
	}
	if f.NArg() > maxArgs {
		return nil, Usage(hint, "unexpected argument %q", f.Arg(maxArgs))
	}
	return f.Args(), nil
}

// EnvName returns the environment variable that gives a flag its default: DIGESTLOCK_TOKEN_FILE for token-file.
func EnvName(flag string) string {
	return "DIGESTLOCK_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}
