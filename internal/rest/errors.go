package rest

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/digestlock/digestlock/internal/fault"
)

// maxWords bounds what is quoted of an API's own words.
const maxWords = 500

// Error is an answer that is no success.
type Error struct {
	Status  int
	Message string    // the API's own words, "" for none
	Date    time.Time // the server's clock, zero when it does not tell
}

func (e *Error) Error() string {
	text := fmt.Sprintf("%d %s", e.Status, http.StatusText(e.Status))
	if e.Message != "" {
		text += ": " + e.Message
	}
	return text
}

// Status returns the status of the answer that err is about, or 0.
func Status(err error) int {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Status
	}
	return 0
}

// explain is for a request without an answer.
func (r request) explain(ctx context.Context, err error) error {
	words := r.clean(err.Error())
	_, untrusted := errors.AsType[*tls.CertificateVerificationError](err)
	f, own := errors.AsType[*fault.Error](err)
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return fmt.Errorf("%s: %w", r, context.Cause(ctx))
	case ctx.Err() != nil:
		return fault.New(fault.GitUnavailable, "check that the API is up and can be reached from here", "%s: %w", r, context.Cause(ctx))
	case own: // of the transport
		return fault.New(f.Code, f.Hint, "%s: %s", r, words)
	case errors.Is(err, errRedirect):
		return fault.New(fault.GitURL, "use the address that the API redirects to", "%s: %w", r, errRedirect)
	case untrusted:
		return fault.New(fault.GitCertificate, "give the CA that signed the server's certificate", "%s: %s", r, words)
	}
	return fault.New(fault.GitUnavailable, "check that the API is up and can be reached from here", "%s: %s", r, words)
}

// refusal is for an answer that is no success.
func (r request) refusal(res *http.Response, body []byte) error {
	e := &Error{Status: res.StatusCode, Message: r.clean(message(body))}
	e.Date, _ = http.ParseTime(res.Header.Get("Date"))
	if until, limited := limit(res); limited {
		return fault.New(fault.RateLimited, "wait until then, or give the token a higher limit",
			"%s: rate limited until %s: %w", r, until.UTC().Format(time.RFC3339), e)
	}
	code, hint := fault.GitRefused, "satisfy the rule that the API names"
	switch {
	case e.Status == http.StatusUnauthorized:
		code, hint = fault.GitAccess, "check that the token is right and has not expired"
	case e.Status == http.StatusForbidden:
		code, hint = fault.GitAccess, "let the token read and write this repository's pull or merge requests"
	case e.Status == http.StatusNotFound:
		code, hint = fault.GitAccess, "check the repository's URL and the API's, and that the token may see the repository"
	case e.Status >= 500:
		code, hint = fault.GitUnavailable, "wait: the next cycle tries again"
	}
	return fault.New(code, hint, "%s: %w", r, e)
}

// limit returns when a request may be made again that was one too many. GitHub answers 403 as well as 429, and tells of
// its two kinds of limit in different headers.
func limit(res *http.Response) (time.Time, bool) {
	after, remaining := res.Header.Get("Retry-After"), res.Header.Get("X-RateLimit-Remaining")
	limited := res.StatusCode == http.StatusTooManyRequests || res.StatusCode == http.StatusForbidden && (after != "" || remaining == "0")
	if !limited {
		return time.Time{}, false
	}
	now := time.Now()
	if seconds, err := strconv.Atoi(after); err == nil {
		return now.Add(time.Duration(seconds) * time.Second), true
	}
	if at, err := http.ParseTime(after); err == nil {
		return at, true
	}
	for _, name := range []string{"X-RateLimit-Reset", "RateLimit-Reset"} { // GitHub's, GitLab's
		if at, err := strconv.ParseInt(res.Header.Get(name), 10, 64); err == nil {
			return time.Unix(at, 0), true
		}
	}
	return now.Add(time.Minute), true // what GitHub asks for when it says nothing
}

// message returns the texts of an answer: forges nest them in their own ways, and a page for people says nothing.
func message(body []byte) string {
	var v any
	if json.Unmarshal(body, &v) != nil {
		return ""
	}
	return strings.Join(texts(v), ", ")
}

func texts(v any) []string {
	var out []string
	switch v := v.(type) {
	case string:
		return []string{v}
	case []any:
		for _, e := range v {
			out = append(out, texts(e)...)
		}
	case map[string]any:
		for _, key := range []string{"message", "error", "error_description", "errors"} {
			out = append(out, texts(v[key])...)
		}
		if len(out) > 0 {
			return out
		}
		for _, key := range slices.Sorted(maps.Keys(v)) { // GitLab: {"title": ["is too long"]}
			for _, text := range texts(v[key]) {
				out = append(out, key+" "+text)
			}
		}
	}
	return out
}

// clean makes foreign words fit to show: one line, of bounded length, without the token.
func (r request) clean(words string) string {
	if r.token != "" {
		words = strings.ReplaceAll(words, r.token, "***")
	}
	words = fault.Line(words)
	if len(words) > maxWords {
		words = strings.ToValidUTF8(words[:maxWords], "") + " …"
	}
	return words
}
