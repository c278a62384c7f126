package signing_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/gitrepo"
	"github.com/digestlock/digestlock/internal/gittest"
	"github.com/digestlock/digestlock/internal/signing"
)

const phrase = "correct horse"

func run(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("no %s here: apt-get install openssh-client gnupg", name)
	}
	cmd := exec.CommandContext(t.Context(), name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, &stderr)
	}
	return out
}

// sshKey has ssh-keygen make a key, and returns it and its public half.
func sshKey(t *testing.T, args ...string) (private, public []byte) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	run(t, "ssh-keygen", append([]string{"-q", "-C", "robot", "-f", path}, args...)...)
	return readFile(t, path), readFile(t, path+".pub")
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func writeFile(t *testing.T, content string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// gnupg is a home of gpg's, with an agent that ends with the test.
type gnupg struct{ home, passphrase string }

func newGnuPG(t *testing.T, passphrase string) gnupg {
	t.Helper()
	home, err := os.MkdirTemp("", "gpg") // not t.TempDir: the agent's sockets need a short path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = exec.Command("gpgconf", "--homedir", home, "--kill", "all").Run() // only what runs is killed
		_ = os.RemoveAll(home)
	})
	return gnupg{home, passphrase}
}

func (g gnupg) run(t *testing.T, args ...string) []byte {
	t.Helper()
	return run(t, "gpg", append([]string{"--homedir", g.home, "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", g.passphrase}, args...)...)
}

// newKey makes a key that signs, and returns its fingerprint.
func (g gnupg) newKey(t *testing.T, kind string, args ...string) string {
	t.Helper()
	g.run(t, append(args, "--quick-generate-key", "Robot <robot@example.com>", kind, "sign", "1y")...)
	for line := range strings.Lines(string(g.run(t, "--with-colons", "--list-secret-keys"))) {
		if rest, ok := strings.CutPrefix(line, "fpr:::::::::"); ok {
			return strings.TrimRight(rest, ":\n")
		}
	}
	t.Fatal("gpg lists no key")
	return ""
}

func (g gnupg) export(t *testing.T, how string) []byte {
	t.Helper()
	return g.run(t, "--armor", how)
}

// verify returns what git verify-commit says of a repository's main.
func verify(repo *gittest.Repo, settings ...string) error {
	args := []string{"-C", repo.Dir}
	for _, s := range settings {
		args = append(args, "-c", s)
	}
	out, err := exec.Command("git", append(args, "verify-commit", "-v", "main")...).CombinedOutput()
	if err != nil {
		return errors.New(string(out))
	}
	return nil
}

// signed pushes a commit that is signed by key to a new repository. Its message and author are of the kind that breaks
// whoever guesses at bytes.
func signed(t *testing.T, key, passphrase []byte) *gittest.Repo {
	t.Helper()
	sign, err := signing.Load(key, passphrase)
	if err != nil {
		t.Fatal(err)
	}
	server := gittest.HTTPS(t)
	repo := server.Create(t, "repo.git", map[string]string{"lock": "a\n"})
	r, err := gitrepo.Open(repo.URL, server.Auth)
	if err != nil {
		t.Fatal(err)
	}
	for _, message := range []string{"build: gr\u00fc\u00dfe \u65e5\u672c", "build: update\r\n\r\n  indented  \n\n\n-----BEGIN X-----\n\nDigestlock-Companion: v1 \n\n"} {
		s, err := r.Read(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.Push(t.Context(), gitrepo.Change{
			Files: map[string][]byte{"lock": []byte(message)}, Message: message, Sign: sign,
			Author:    gitrepo.Signature{Name: "Jos\u00e9 <Robot>", Email: "robot@example.com"},
			Committer: gitrepo.Signature{Name: "Robot", Email: "robot@example.com"},
			When:      time.Now().In(time.FixedZone("", -(3*3600 + 1800))),
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	repo.Git(t, "fsck", "--strict")
	return repo
}

// parent points main one commit back, so that the other message is verified as well.
func parent(t *testing.T, repo *gittest.Repo) {
	t.Helper()
	repo.Git(t, "update-ref", "refs/heads/main", "main~1")
}

func TestSSH(t *testing.T) {
	t.Parallel()
	_, stranger := sshKey(t, "-t", "ed25519", "-N", "")
	for name, tt := range map[string]struct{ args, passphrase string }{
		"ed25519":                 {"-t ed25519", ""},
		"ed25519, passphrase":     {"-t ed25519", phrase},
		"ecdsa 256":               {"-t ecdsa -b 256", ""},
		"ecdsa 521":               {"-t ecdsa -b 521", ""},
		"rsa":                     {"-t rsa -b 2048", ""},
		"rsa, PEM and passphrase": {"-t rsa -b 2048 -m PEM", phrase},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			private, public := sshKey(t, append(strings.Fields(tt.args), "-N", tt.passphrase)...)
			repo := signed(t, private, []byte(tt.passphrase))
			allow := func(key []byte) string {
				return "gpg.ssh.allowedSignersFile=" + writeFile(t, `robot@example.com namespaces="git" `+string(key), 0o600)
			}
			for range 2 {
				if err := verify(repo, "gpg.format=ssh", allow(public)); err != nil {
					t.Error(err)
				}
				if err := verify(repo, "gpg.format=ssh", allow(stranger)); err == nil {
					t.Error("git verifies anything")
				}
				parent(t, repo)
			}
		})
	}
}

func TestOpenPGP(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ kind, passphrase, export string }{
		"ed25519":                 {"ed25519", "", "--export-secret-keys"},
		"rsa, passphrase":         {"rsa2048", phrase, "--export-secret-keys"},
		"subkey, primary offline": {"ed25519", phrase, "--export-secret-subkeys"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newGnuPG(t, tt.passphrase)
			fingerprint := g.newKey(t, tt.kind)
			if tt.export == "--export-secret-subkeys" {
				g.run(t, "--quick-add-key", fingerprint, "ed25519", "sign", "1y")
			}
			repo := signed(t, g.export(t, tt.export), []byte(tt.passphrase))
			program := writeFile(t, "#!/bin/sh\nexec gpg --homedir "+g.home+` "$@"`+"\n", 0o700)
			empty := writeFile(t, "#!/bin/sh\nexec gpg --homedir "+newGnuPG(t, "").home+` "$@"`+"\n", 0o700)
			for range 2 {
				if err := verify(repo, "gpg.program="+program); err != nil {
					t.Error(err)
				}
				if err := verify(repo, "gpg.program="+empty); err == nil {
					t.Error("git verifies anything")
				}
				parent(t, repo)
			}
		})
	}
}

func TestLoadRefuses(t *testing.T) {
	t.Parallel()
	private, public := sshKey(t, "-t", "ed25519", "-N", "")
	locked, _ := sshKey(t, "-t", "ed25519", "-N", phrase)
	pem, _ := sshKey(t, "-t", "rsa", "-b", "2048", "-m", "PEM", "-N", phrase)
	g, lockedPGP, expired := newGnuPG(t, ""), newGnuPG(t, phrase), newGnuPG(t, "")
	g.newKey(t, "ed25519")
	one := g.export(t, "--export-secret-keys")
	g.newKey(t, "ed25519", "--yes")
	lockedPGP.newKey(t, "ed25519")
	expired.newKey(t, "ed25519", "--faked-system-time", "20200101T000000")
	damaged := bytes.Replace(private, []byte("\n"), []byte("\nAAAA"), 1)
	for name, tt := range map[string]struct {
		key        []byte
		passphrase string
		want, hint string
	}{
		"nothing":               {nil, "", "is neither an SSH nor an OpenPGP key", "gpg --armor --export-secret-keys KEY"},
		"text":                  {[]byte("correct horse"), "", "is neither an SSH nor an OpenPGP key", "give an OpenSSH private key"},
		"ssh, public":           {public, "", "is a public key", "give the private key"},
		"ssh, no passphrase":    {locked, "", "needs a passphrase", "give its passphrase"},
		"ssh, wrong passphrase": {locked, "wrong horse", "cannot be opened with this passphrase", "check the passphrase"},
		"pem, no passphrase":    {pem, "", "needs a passphrase", "give its passphrase"},
		"pem, wrong passphrase": {pem, "wrong horse", "cannot be opened with this passphrase", "check the passphrase"},
		"ssh, damaged":          {damaged, "", "is damaged, or of a kind that is not supported", "use an ed25519, ecdsa or rsa key"},
		"pgp, public":           {g.export(t, "--export"), "", "is a public key", "give the private key"},
		"pgp, two keys":         {g.export(t, "--export-secret-keys"), "", "is not one key but several", "export one key by its fingerprint"},
		"pgp, no passphrase":    {lockedPGP.export(t, "--export-secret-keys"), "", "needs a passphrase", "give its passphrase"},
		"pgp, wrong passphrase": {lockedPGP.export(t, "--export-secret-keys"), "wrong horse", "cannot be opened with this passphrase", "check the passphrase"},
		"pgp, expired":          {expired.export(t, "--export-secret-keys"), "", "has expired, was revoked, or is not for signing", "extend it"},
		"pgp, cut short":        {append(one[:len(one)/2:len(one)/2], "\n-----END PGP PRIVATE KEY BLOCK-----\n"...), "", "signing key ", ""},
	} {
		sign, err := signing.Load(tt.key, []byte(tt.passphrase))
		if err == nil || sign != nil {
			t.Errorf("%s: Load = %v, no error", name, sign != nil)
			continue
		}
		if !strings.Contains(err.Error(), tt.want) || !strings.Contains(fault.Hint(err), tt.hint) || fault.CodeOf(err) != fault.GitCredentials {
			t.Errorf("%s: error %q, hint %q, code %s; want %q, %q", name, err, fault.Hint(err), fault.CodeOf(err), tt.want, tt.hint)
		}
		if strings.Contains(err.Error(), "horse") || errors.Unwrap(err) != nil && strings.Contains(errors.Unwrap(err).Error(), "horse") {
			t.Errorf("%s: %q gives the passphrase away", name, err)
		}
	}
	if _, err := signing.Load(private, []byte("needless")); err != nil {
		t.Errorf("a passphrase for a key that is not locked: %v", err)
	}
}

// TestOfflinePrimary: gpg leaves a stub where a secret was.
func TestOfflinePrimary(t *testing.T) {
	t.Parallel()
	g := newGnuPG(t, "")
	g.run(t, "--quick-add-key", g.newKey(t, "ed25519"), "cv25519", "encr", "1y")
	_, err := signing.Load(g.export(t, "--export-secret-subkeys"), nil)
	if err == nil || !strings.Contains(err.Error(), "has no secret part for ") || !strings.Contains(fault.Hint(err), "--export-secret-keys") {
		t.Errorf("Load: %v (%s)", err, fault.Hint(err))
	}
}
