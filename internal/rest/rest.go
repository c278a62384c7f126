// Package rest calls the JSON API of a forge, and turns what goes wrong into errors for people.
package rest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/digestlock/digestlock/internal/fault"
)

const (
	// stepTimeout bounds each request.
	stepTimeout = 30 * time.Second
	// maxTries is how often a request is made that may be made again.
	maxTries = 3
	// maxBody bounds an answer: the largest are pages of a hundred requests with their texts.
	maxBody = 16 << 20
)

// Client calls one API. It is safe for concurrent use.
type Client struct {
	base  string
	token func(context.Context) (string, error)
	http  http.Client
}

// New returns a client for the API at base, an https URL. It sends what token returns, asked for each call, as bearer
// token, and follows no redirect to another host. What leads to the host is httpClient's business; nil stands for
// [http.DefaultClient].
func New(base string, token func(context.Context) (string, error), httpClient *http.Client) (*Client, error) {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fault.New(fault.GitURL, "use https://host/path, as in https://ghe.example.com/api/v3", "address of the API is not plain https")
	}
	if httpClient == nil {
		httpClient = http.DefaultClient
	}
	c := &Client{base: strings.TrimRight(u.String(), "/"), token: token, http: *httpClient}
	c.http.CheckRedirect = sameHost
	return c, nil
}

// Call makes a request to path, which is below the API's address, escaped, and may end in a query. It sends in as JSON
// unless that is nil, and decodes the answer into out. A request that changes nothing by being made twice, which is any
// but POST, is tried three times while the API is down.
//
// An answer that is no success is an [*Error]; whatever goes wrong is a fault with a hint.
func (c *Client) Call(ctx context.Context, method, path string, in, out any) error {
	token, err := c.token(ctx)
	if err != nil {
		return err
	}
	r := request{client: c, method: method, path: path, token: token}
	if in != nil {
		if r.body, err = json.Marshal(in); err != nil {
			return fmt.Errorf("%s: encode request: %w", r, err)
		}
	}
	tries := uint(maxTries)
	if method == http.MethodPost {
		tries = 1
	}
	_, err = backoff.Retry(ctx, func() (struct{}, error) {
		err := r.try(ctx, out)
		if err != nil && fault.CodeOf(err) != fault.GitUnavailable {
			err = backoff.Permanent(err)
		}
		return struct{}{}, err
	}, backoff.WithBackOff(newBackOff()), backoff.WithMaxTries(tries), backoff.WithMaxElapsedTime(0))
	return err
}

// newBackOff waits a fifth of a second and then more, jittered by half.
func newBackOff() backoff.BackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval = 200 * time.Millisecond
	return b
}

// request is one call, made once or more.
type request struct {
	client       *Client
	method, path string
	token        string
	body         []byte
}

// String is for people, who do not need the query.
func (r request) String() string {
	path, _, _ := strings.Cut(r.path, "?")
	return r.method + " " + r.client.base + path
}

func (r request) try(ctx context.Context, out any) error {
	ctx, cancel := context.WithTimeoutCause(ctx, stepTimeout, fmt.Errorf("no answer within %v", stepTimeout))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, r.method, r.client.base+r.path, bytes.NewReader(r.body))
	if err != nil {
		return fmt.Errorf("%s: %w", r, err)
	}
	req.Header.Set("Authorization", "Bearer "+r.token)
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "digestlock")
	if r.body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := r.client.http.Do(req)
	if err != nil {
		return r.explain(ctx, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxBody+1))
	if err != nil {
		return r.explain(ctx, err)
	}
	if res.StatusCode < 200 || res.StatusCode > 299 {
		return r.refusal(res, body)
	}
	if len(body) > maxBody {
		return fault.New(fault.TooLarge, "check the address of the API", "%s: the answer is larger than %d MiB", r, maxBody>>20)
	}
	if err := json.Unmarshal(body, out); err != nil { // the cause may quote what it does not understand
		return fault.New(fault.GitURL, "check the address of the API: something else answers there", "%s: the answer is not the JSON of this API", r)
	}
	return nil
}

// errRedirect refuses what a redirect asks for.
var errRedirect = errors.New("the API redirects to another host, or turns the request into another")

// sameHost lets a redirect change the path: a repository that was renamed. Headers would follow it anywhere.
func sameHost(req *http.Request, via []*http.Request) error {
	first := via[0]
	if req.URL.Scheme != first.URL.Scheme || req.URL.Host != first.URL.Host || req.Method != first.Method || len(via) > 3 {
		return errRedirect
	}
	return nil
}
