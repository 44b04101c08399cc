package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// ProblemPrefix begins the type of every problem of this API; what follows it is the kind, such as "denied".
const ProblemPrefix = "urn:chancery:problem:"

// Problem is a refusal or a failure as RFC 9457 writes it, with our extension members.
type Problem struct {
	Type      string         `json:"type" doc:"urn:chancery:problem: and the kind of the refusal"`
	Title     string         `json:"title" doc:"the kind in words; the same for every problem of this type"`
	Status    int            `json:"status" doc:"the HTTP status"`
	Detail    string         `json:"detail,omitempty" doc:"which rule, which value, and what would pass"`
	Hint      string         `json:"hint,omitempty" doc:"the next command, if there is one"`
	Pointer   string         `json:"pointer,omitempty" doc:"where in the input: a JSON pointer, line:column, or a name"`
	RequestID string         `json:"request_id,omitempty" doc:"finds this request in the node's log"`
	Errors    []ProblemError `json:"errors,omitempty" doc:"every fault found, where there are several"`

	// RetryAfter is how long the node asks the caller to wait; 0 where it does not say.
	RetryAfter time.Duration `json:"-"`
}

// ProblemError is one of several faults found in an input.
type ProblemError struct {
	Detail  string `json:"detail" doc:"which rule, which value, and what would pass"`
	Pointer string `json:"pointer,omitempty" doc:"where in the input"`
}

// Error gives the detail, all further faults, and the request ID where the node hides the reason.
func (p *Problem) Error() string {
	var b strings.Builder
	switch {
	case p.Detail != "":
		b.WriteString(p.Detail)
	case p.Title != "":
		b.WriteString(p.Title)
	default:
		fmt.Fprintf(&b, "the node answered %d %s", p.Status, http.StatusText(p.Status))
	}
	for _, e := range p.Errors {
		if e.Detail == p.Detail {
			continue
		}
		fmt.Fprintf(&b, "; %s", e.Detail)
		if e.Pointer != "" {
			fmt.Fprintf(&b, " (at %s)", e.Pointer)
		}
	}
	// A place in a text that the detail names already is not told twice.
	if line, _, _ := strings.Cut(p.Pointer, ":"); p.Pointer != "" && !strings.Contains(p.Detail, "line "+line) {
		fmt.Fprintf(&b, " (at %s)", p.Pointer)
	}
	if p.Kind() == "internal" && p.RequestID != "" {
		fmt.Fprintf(&b, " (request %s)", p.RequestID)
	}
	return b.String()
}

// Kind is the kind of refusal: "invalid", "unauthenticated", "denied", "not-found", "conflict", "too-large",
// "rate-limited", "unavailable" or "internal"; empty where what answered is not a node.
func (p *Problem) Kind() string {
	kind, ok := strings.CutPrefix(p.Type, ProblemPrefix)
	if !ok {
		return ""
	}
	return kind
}

// IsKind reports whether err is a problem of the given kind.
func IsKind(err error, kind string) bool {
	p, ok := errors.AsType[*Problem](err)
	return ok && p.Kind() == kind
}

// problemOf makes a Problem of a response that is no success. Whatever stands in front of a node may answer in its place,
// so anything that is not problem+json still becomes a Problem, with its status.
func problemOf(resp *http.Response, body []byte) *Problem {
	p := &Problem{}
	mediaType, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if mediaType != "application/problem+json" || json.Unmarshal(body, p) != nil {
		p = &Problem{Type: "about:blank", Title: http.StatusText(resp.StatusCode)}
		p.Detail = fmt.Sprintf("%s answered %s, which is not an answer of a Chancery node", resp.Request.URL.Host, resp.Status)
	}
	p.Status = resp.StatusCode
	if p.RequestID == "" {
		p.RequestID = resp.Header.Get("X-Request-Id")
	}
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s > 0 {
		p.RetryAfter = time.Duration(s) * time.Second
	}
	return p
}
