package main

import (
	"bytes"
	"os"
	"strings"
	"text/template"
	"time"

	"github.com/digestlock/digestlock/internal/cli"
	"github.com/digestlock/digestlock/internal/companion"
	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/gitrepo"
	"github.com/digestlock/digestlock/internal/signing"
)

// commitFlags say when commits are made, and what they look like.
type commitFlags struct {
	author, committer          gitrepo.Signature
	template                   string
	lockBranch                 string
	skipCI                     bool
	signingKey, passphraseFile string
	quiet                      companion.Quiet
}

func (f *commitFlags) register(flags *cli.Flags) {
	flags.StringVar(&f.author.Name, "author-name", "digestlock", "author of commits")
	flags.StringVar(&f.author.Email, "author-email", "digestlock@localhost", "e-mail address of the author")
	flags.StringVar(&f.committer.Name, "committer-name", "", "committer of commits, with --committer-email; empty for the author")
	flags.StringVar(&f.committer.Email, "committer-email", "", "e-mail address of the committer")
	flags.StringVar(&f.template, "message-template", "", "file with a Go template of commit messages, see docs/companion.md; empty for the default")
	flags.StringVar(&f.lockBranch, "lock-branch", "", "for mode live: keep the locks of paths that only Applications of mode live render on a branch of this name, such as digestlock-live/{{.Branch}}, which no render reads; empty for the followed branch")
	flags.BoolVar(&f.skipCI, "skip-ci", false, "put [skip ci] into commit messages")
	flags.StringVar(&f.signingKey, "signing-key-file", "", "file with an OpenSSH or armored OpenPGP private key to sign commits with")
	flags.StringVar(&f.passphraseFile, "signing-passphrase-file", "", "file with the passphrase of the signing key")
	flags.DurationVar(&f.quiet.Window, "quiet-window", 10*time.Second, "what changes within this time after a commit to a branch goes into one more, once nothing new comes for as long; 0 commits at once")
	flags.DurationVar(&f.quiet.Longest, "quiet-max", time.Minute, "how long the first of what waits may wait at most")
}

func (f *commitFlags) apply(o *companion.Options) error {
	if f.quiet.Window < 0 || f.quiet.Longest < f.quiet.Window {
		return cli.Usage("for example: --quiet-window=10s --quiet-max=60s", "--quiet-max=%v is shorter than --quiet-window=%v", f.quiet.Longest, f.quiet.Window)
	}
	if (f.committer.Name == "") != (f.committer.Email == "") {
		return cli.Usage("give both, or none for the author", "--committer-name and --committer-email belong together")
	}
	o.Author, o.Committer, o.SkipCI, o.Quiet = f.author, f.committer, f.skipCI, f.quiet
	if f.template != "" {
		text, err := os.ReadFile(f.template)
		if err == nil {
			o.Message, err = parseMessage(string(text))
		}
		if err != nil {
			return cli.Usage("see docs/companion.md for what a template is given", "--message-template: %w", err)
		}
	}
	if err := f.aside(o); err != nil || f.signingKey == "" {
		return err
	}
	key, err := os.ReadFile(f.signingKey)
	if err != nil {
		return fault.New(fault.SecretFile, "mount the secret there, readable for this user", "--signing-key-file: %w", err)
	}
	var passphrase []byte
	if f.passphraseFile != "" {
		if passphrase, err = os.ReadFile(f.passphraseFile); err != nil {
			return fault.New(fault.SecretFile, "mount the secret there, readable for this user", "--signing-passphrase-file: %w", err)
		}
		passphrase = bytes.TrimRight(passphrase, "\r\n")
	}
	o.Sign, err = signing.Load(key, passphrase)
	return err
}

// aside sets the lock branch, which must not be the push branch: each would undo the other's commits.
func (f *commitFlags) aside(o *companion.Options) (err error) {
	const hint = "for example: --lock-branch 'digestlock-live/{{.Branch}}'"
	if f.lockBranch == "" {
		return nil
	}
	if o.LockBranch, err = parseBranch(f.lockBranch); err != nil {
		return cli.Usage(hint, "--lock-branch: %w", err)
	}
	if o.PushBranch == nil {
		return nil
	}
	locks, _ := o.LockBranch("main") // parseBranch has tried both
	if pushed, _ := o.PushBranch("main"); pushed == locks {
		return cli.Usage(hint, "--lock-branch and --push-branch are both %q for the branch main", locks)
	}
	return nil
}

// parseMessage parses a template of commit messages, which is given a [companion.Message] and has the functions short (a
// digest's first 12 digits) and join (strings.Join). It returns an error for one that fails on an example.
//
// It is here and not in package companion, which is in digestlock too: with text/template the linker keeps every exported
// method of every package, and that program becomes 10 MB larger.
func parseMessage(text string) (func(companion.Message) (string, error), error) {
	t, err := template.New("message").Funcs(template.FuncMap{"short": companion.Short, "join": strings.Join}).Parse(text)
	if err != nil {
		return nil, err
	}
	message := func(m companion.Message) (string, error) {
		var b strings.Builder
		err := t.Execute(&b, m)
		return b.String(), err
	}
	_, err = message(companion.Message{Subject: "s", Repository: "r", Branch: "b", Images: []companion.MessageImage{{
		Image: "i", Name: "n", Old: "o", New: "n", Revision: "r", Source: "s", Places: []companion.MessagePlace{{File: "f", Applications: []string{"a"}}},
	}}})
	return message, err
}
