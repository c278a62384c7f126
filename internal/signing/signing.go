// Package signing signs commits so that git verify-commit, and forges, can tell who made them.
package signing

import (
	"bytes"
	"crypto/rand"
	"crypto/sha512"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"golang.org/x/crypto/ssh"

	"github.com/digestlock/digestlock/internal/fault"
)

const (
	kindHint   = "give an OpenSSH private key, or what gpg --armor --export-secret-keys KEY prints"
	publicHint = "give the private key; the public one is for those who verify"
	phraseHint = "check the passphrase of the signing key"
)

// Load returns what signs with key: an OpenSSH private key, or an OpenPGP secret key in armor with all that signing needs.
// passphrase opens a key that is locked, and is ignored for one that is not. What it returns is safe for concurrent
// use, and its signature is what Git keeps in a commit's header gpgsig. Errors never hold any of the key.
func Load(key, passphrase []byte) (func(payload []byte) (string, error), error) {
	// The armor of a PEM file, which keys for SSH can be in, looks the same.
	if block, err := armor.Decode(bytes.NewReader(key)); err == nil && strings.HasPrefix(block.Type, "PGP ") {
		return loadOpenPGP(block, passphrase)
	}
	return loadSSH(key, passphrase)
}

// invalid is an error about a key. Causes from below are not shown: they have seen the key.
func invalid(hint, what string) error {
	return fault.New(fault.GitCredentials, hint, "signing key %s", what)
}

func loadSSH(key, passphrase []byte) (func([]byte) (string, error), error) {
	if _, _, _, _, err := ssh.ParseAuthorizedKey(key); err == nil {
		return nil, invalid(publicHint, "is a public key")
	}
	signer, err := ssh.ParsePrivateKey(key)
	if _, locked := errors.AsType[*ssh.PassphraseMissingError](err); locked {
		if len(passphrase) == 0 {
			return nil, invalid("give its passphrase, or a key without one", "needs a passphrase")
		}
		signer, err = ssh.ParsePrivateKeyWithPassphrase(key, passphrase)
	}
	switch {
	case errors.Is(err, x509.IncorrectPasswordError):
		return nil, invalid(phraseHint, "cannot be opened with this passphrase")
	case err != nil && bytes.Contains(key, []byte("PRIVATE KEY-----")):
		return nil, invalid("use an ed25519, ecdsa or rsa key, whole, and one that is not in a hardware token", "is damaged, or of a kind that is not supported")
	case err != nil:
		return nil, invalid(kindHint, "is neither an SSH nor an OpenPGP key")
	case signer.PublicKey().Type() == "ssh-dss":
		return nil, invalid("use an ed25519, ecdsa or rsa key", "is of a kind that OpenSSH no longer verifies")
	}
	return func(payload []byte) (string, error) { return signSSH(signer, payload) }, nil
}

// signSSH makes what `ssh-keygen -Y sign -n git` makes: PROTOCOL.sshsig in OpenSSH's sources.
func signSSH(signer ssh.Signer, payload []byte) (string, error) {
	const magic, namespace, hash = "SSHSIG", "git", "sha512"
	digest := sha512.Sum512(payload)
	signed := ssh.Marshal(struct{ Namespace, Reserved, Hash, Digest string }{namespace, "", hash, string(digest[:])})
	algorithm := signer.PublicKey().Type()
	if algorithm == ssh.KeyAlgoRSA {
		algorithm = ssh.KeyAlgoRSASHA512 // the type's own name stands for SHA-1, which is refused
	}
	s, ok := signer.(ssh.AlgorithmSigner)
	if !ok {
		return "", errors.New("sign commit: SSH key cannot choose how to sign")
	}
	signature, err := s.SignWithAlgorithm(rand.Reader, append([]byte(magic), signed...), algorithm)
	if err != nil {
		return "", invalid(kindHint, "does not sign")
	}
	blob := ssh.Marshal(struct {
		Version                                   uint32
		Key, Namespace, Reserved, Hash, Signature string
	}{1, string(signer.PublicKey().Marshal()), namespace, "", hash, string(ssh.Marshal(signature))})
	return string(pem.EncodeToMemory(&pem.Block{Type: "SSH SIGNATURE", Bytes: append([]byte(magic), blob...)})), nil
}

func loadOpenPGP(block *armor.Block, passphrase []byte) (func([]byte) (string, error), error) {
	if block.Type == openpgp.PublicKeyType {
		return nil, invalid(publicHint, "is a public key")
	}
	ring, err := openpgp.ReadKeyRing(block.Body)
	if block.Type != openpgp.PrivateKeyType || err != nil {
		return nil, invalid(kindHint, "is not an OpenPGP secret key")
	}
	if len(ring) != 1 {
		return nil, invalid("export one key by its fingerprint", "is not one key but several")
	}
	entity := ring[0]
	key, err := signingKey(entity)
	if err != nil {
		return nil, err
	}
	if key.PrivateKey.Encrypted {
		if len(passphrase) == 0 {
			return nil, invalid("give its passphrase, or a key without one", "needs a passphrase")
		}
		if err := key.PrivateKey.Decrypt(passphrase); err != nil {
			return nil, invalid(phraseHint, "cannot be opened with this passphrase")
		}
	}
	return func(payload []byte) (string, error) { return signOpenPGP(entity, payload) }, nil
}

// signingKey returns the key or subkey of entity's that signs today.
func signingKey(entity *openpgp.Entity) (openpgp.Key, error) {
	key, ok := entity.SigningKey(time.Now())
	switch {
	case !ok:
		return key, invalid("extend it, or use another", "has expired, was revoked, or is not for signing")
	case key.PrivateKey == nil || key.PrivateKey.Dummy():
		return key, invalid("export it where it is: gpg --armor --export-secret-keys, or --export-secret-subkeys for a subkey alone",
			"has no secret part for "+strings.ToUpper(key.PublicKey.KeyIdString()))
	}
	return key, nil
}

func signOpenPGP(entity *openpgp.Entity, payload []byte) (string, error) {
	if _, err := signingKey(entity); err != nil { // it may have expired since it was loaded
		return "", err
	}
	var out strings.Builder
	if err := openpgp.ArmoredDetachSign(&out, entity, bytes.NewReader(payload), nil); err != nil {
		return "", invalid(kindHint, "does not sign")
	}
	return out.String(), nil
}
