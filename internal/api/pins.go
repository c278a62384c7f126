package api

import (
	"context"
	"net/http"
	"slices"

	"github.com/digestlock/digestlock/internal/lock"
)

// pins is a ledger as a resolver sent it, under the tag by which it says that it has no other. It does not change.
type pins struct {
	tag  string
	docs []lock.Document
}

// Pins returns the resolver's ledger, which is the caller's to change. It is sent again only when it is not what it was for
// this client, or for one that it has it from, see [Client.Inherit]; a resolver that is too old to say so sends it each time.
func (c *Client) Pins(ctx context.Context) ([]lock.Document, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+"/v1/pins", nil)
	if err != nil {
		return nil, err
	}
	known := c.pins.Load()
	if known != nil {
		req.Header.Set("If-None-Match", known.tag)
	}
	res, data, err := c.send(req)
	if err != nil {
		return nil, err
	}
	if known != nil && res.StatusCode == http.StatusNotModified {
		return clone(known.docs), nil
	}
	var answer PinsResponse
	if err := c.decode(res.StatusCode, data, &answer); err != nil {
		return nil, err
	}
	known = nil
	if tag := res.Header.Get("ETag"); tag != "" {
		known = &pins{tag, clone(answer.Sources)}
	}
	c.pins.Store(known)
	return answer.Sources, nil
}

// Inherit has c know the ledger that the client of the same address among those before it knows, if there is one: clients
// are made anew as replicas come and go. What it knows of another replica at that address is not used.
func (c *Client) Inherit(before []*Client) {
	for _, b := range before {
		if b.name == c.name {
			c.pins.Store(b.pins.Load())
		}
	}
}

func clone(docs []lock.Document) []lock.Document {
	docs = slices.Clone(docs)
	for i, d := range docs {
		if d.Source != nil {
			docs[i].Source = new(*d.Source)
		}
		docs[i].Pins = slices.Clone(d.Pins)
		for j, p := range d.Pins {
			if p.Hold != nil {
				docs[i].Pins[j].Hold = new(*p.Hold)
			}
		}
	}
	return docs
}
