// Package problem is what the surfaces share: the one map from a refusal to its wire form, the wide event of each
// request, and the limits that keep one caller from harming the others.
//
// Refusals are written as RFC 9457 says. Divergences: a problem's type is a URN of our own, urn:chancery:problem: and the
// fault.Kind, which is a name and not a page; "instance" is not sent, since the member "request_id" identifies the
// occurrence, and a URI would promise something to fetch.
//
// A refusal says its rule, its value and what would pass. Anything else that goes wrong is shown to the caller as
// "internal error" with the request's ID, and logged once, here.
package problem

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"time"

	"chancery/client"
	"chancery/internal/fault"
)

// ContentType is the media type of a problem (RFC 9457 §3).
const ContentType = "application/problem+json"

// form is how a Kind looks on the wire.
type form struct {
	status int
	title  string
	retry  int // seconds of Retry-After; 0 sends none
}

// forms is the one map from Kind to wire form; a test ranges over fault.Kinds.
var forms = map[fault.Kind]form{
	fault.Invalid:         {http.StatusUnprocessableEntity, "The input breaks a rule", 0},
	fault.Unauthenticated: {http.StatusUnauthorized, "The caller did not prove who it is", 0},
	fault.Denied:          {http.StatusForbidden, "The caller may not do this", 0},
	fault.NotFound:        {http.StatusNotFound, "There is no such object", 0},
	fault.Conflict:        {http.StatusConflict, "The present state forbids it", 0},
	fault.TooLarge:        {http.StatusRequestEntityTooLarge, "The input is over a limit", 0},
	fault.RateLimited:     {http.StatusTooManyRequests, "The caller asks too often", 1},
	fault.Unavailable:     {http.StatusServiceUnavailable, "The node cannot do it now", 2},
	fault.Internal:        {http.StatusInternalServerError, "Internal error", 0},
}

// Of is the wire form of err. What is no refusal says nothing of its cause.
func Of(err error, requestID string) *client.Problem {
	kind := fault.KindOf(err)
	p := &client.Problem{Type: client.ProblemPrefix + string(kind), RequestID: requestID}
	f, ok := forms[kind]
	if !ok { // a Kind from elsewhere: unknown is not the caller's business
		f, p.Type = forms[fault.Internal], client.ProblemPrefix+string(fault.Internal)
	}
	p.Title, p.Status = f.title, f.status
	p.RetryAfter = time.Duration(f.retry) * time.Second
	if kind == fault.Internal || !ok {
		p.Detail = "internal error"
		p.Hint = "find the request's ID in the node's log"
		return p
	}
	if e, ok := errors.AsType[*fault.Error](err); ok {
		p.Detail, p.Hint, p.Pointer = e.Message, e.Hint, e.Pointer
	}
	if r, ok := errors.AsType[retryError](err); ok {
		p.RetryAfter = r.RetryAfter()
	}
	return p
}

// retryError is an error that knows when the caller may come back.
type retryError interface {
	error
	RetryAfter() time.Duration
}

// Write answers r with err, and notes it in the request's event.
func Write(w http.ResponseWriter, r *http.Request, err error) {
	e := EventOf(r.Context())
	err = Refine(r.Context(), err)
	e.Fail(err)
	WriteProblem(w, Of(err, e.ID()))
}

// Refine names what net/http and context only hint at: a body over its limit, and a caller that has gone.
func Refine(ctx context.Context, err error) error {
	if m, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return fault.New(fault.TooLarge, "the request's body is over the limit of %d bytes", m.Limit)
	}
	if fault.KindOf(err) == fault.Internal && ctx.Err() != nil {
		return fault.New(fault.Unavailable, "the request ended before it was answered")
	}
	return err
}

// WriteProblem writes p with its headers.
func WriteProblem(w http.ResponseWriter, p *client.Problem) {
	Headers(w.Header(), p)
	w.Header().Set("Content-Type", ContentType)
	body, err := json.Marshal(p)
	if err != nil { // strings and integers cannot fail
		body = []byte(`{}`)
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(p.Status)
	w.Write(body) // an error here is a caller that has gone; the event has the status
}

// Headers sets what a problem's status asks for: how to authenticate, and when to come back. A problem is never cached.
func Headers(h http.Header, p *client.Problem) {
	h.Set("Cache-Control", "no-store")
	if p.Status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", `Bearer realm="chancery"`)
	}
	if p.RetryAfter > 0 {
		h.Set("Retry-After", Seconds(p.RetryAfter))
	}
}

// Seconds is a length of time as Retry-After has it (RFC 9110 §10.2.3), rounded up.
func Seconds(d time.Duration) string { return strconv.Itoa(int((d + time.Second - 1) / time.Second)) }
