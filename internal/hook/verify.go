package hook

import (
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"hash"
	"net/http"
	"strings"
)

// proof reports whether a request shows that its sender knows a secret.
type proof func(r Request, secret string) bool

// Verify reports whether a request proves, in the way of its sender, that it knows one of the secrets. It takes a time
// that tells nothing about how near a guess came. Senders that bear a token of Google's are never verified here.
func Verify(name string, r Request, secrets []string) bool {
	proof := senders[name].proof
	if proof == nil {
		return false
	}
	known := false
	for _, s := range secrets {
		known = s != "" && proof(r, s) || known
	}
	return known
}

// byPath is for senders that can be given a URL and nothing else.
func byPath(r Request, secret string) bool { return equal(r.Secret, secret) }

// byAuthorization is for senders that send a fixed header Authorization. What stands in it is for their operators to
// type or for the sender's own form to make: the secret itself, as a bearer token, or as the password of any user.
func byAuthorization(r Request, secret string) bool {
	given := r.Header.Get("Authorization")
	_, password, _ := (&http.Request{Header: r.Header}).BasicAuth()
	bearer, _ := strings.CutPrefix(given, "Bearer ")
	return equal(given, secret) || equal(bearer, secret) || equal(password, secret)
}

type algorithm struct {
	name string
	new  func() hash.Hash
}

var (
	sha256Sum = algorithm{"sha256=", sha256.New}
	sha1Sum   = algorithm{"sha1=", sha1.New} // Nexus has no other; HMAC does not need SHA-1 to resist collisions
)

// bySignature is for senders that sign the body with the secret, in hexadecimal digits with or without the algorithm's
// name in front.
func bySignature(header string, a algorithm) proof {
	return func(r Request, secret string) bool {
		given, err := hex.DecodeString(strings.TrimPrefix(r.Header.Get(header), a.name))
		mac := hmac.New(a.new, []byte(secret))
		mac.Write(r.Body)
		return err == nil && hmac.Equal(given, mac.Sum(nil))
	}
}

// equal compares in a time that tells nothing about where, or whether in length, two secrets differ.
func equal(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}
