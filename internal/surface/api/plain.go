package api

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"time"

	"chancery/client"
	"chancery/internal/surface/problem"
	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
)

// plainly says who answers the plainest of its calls.
func (r route) plainly(answer func(huma.Context, func(huma.Context))) route {
	r.plain = answer
	return r
}

// plainBody bounds the bodies that plainIssue reads.
const plainBody = 16 << 10

// plainIssue answers the plainest calls of certificate-issue, which are nearly all of them, past huma: it would decode the
// body twice, the first time into a map to hold it against the schema, and so took a tenth of the time of an issuance. What is
// in any way out of the ordinary goes on to huma as it came, and is refused or answered there.
func (s *Server) plainIssue(hc huma.Context, next func(huma.Context)) {
	r, w := humago.Unwrap(hc)
	key := r.Header.Values("Idempotency-Key")
	plain := r.URL.RawQuery == "" && len(key) == 1 && plainKey(key[0]) && r.Header.Get("Content-Type") == mediaJSON &&
		r.ContentLength > 0 && r.ContentLength <= plainBody
	if accept := r.Header.Get("Accept"); !plain || accept != "" && accept != "*/*" && accept != mediaJSON {
		next(hc)
		return
	}
	c := callOf(hc.Context())
	c.control.SetReadDeadline(time.Now().Add(hc.Operation().BodyReadTimeout)) // a test's recorder has none
	body := make([]byte, r.ContentLength)
	n, err := io.ReadFull(r.Body, body)
	order, ok := plainOrder(body[:n])
	if err != nil || !ok {
		r.Body = &readBody{*bytes.NewReader(body[:n]), err, r.Body}
		next(hc)
		return
	}
	c.control.SetReadDeadline(time.Time{})
	out, err := s.issue(hc.Context(), &in[client.IssueRequest]{Keyed: Keyed{key[0]}, Body: order})
	if err != nil {
		problem.Write(w, r.WithContext(hc.Context()), err)
		return
	}
	writeJSON(hc.Context(), w, out.Status, out.Body)
}

// readBody is a body that was read already, to its end or until it failed.
type readBody struct {
	bytes.Reader
	err error
	io.Closer
}

func (b *readBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err == io.EOF && b.err != nil {
		err = b.err
	}
	return n, err
}

// WriteTo hides that of bytes.Reader, which knows no failure.
func (b *readBody) WriteTo(w io.Writer) (int64, error) { return io.Copy(w, struct{ io.Reader }{b}) }

// writeJSON writes what huma would, with its length.
func writeJSON(ctx context.Context, w http.ResponseWriter, status int, body any) {
	var b bytes.Buffer
	b.Grow(6 << 10)
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(body); err != nil {
		problem.EventOf(ctx).Fail(err)
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", mediaJSON)
	w.Header().Set("Content-Length", strconv.Itoa(b.Len()))
	w.WriteHeader(status)
	w.Write(b.Bytes()) // an error here is a caller that has gone; the event has the status
}

// plainKey is what the schema says of Idempotency-Key.
func plainKey(key string) bool {
	for i := range len(key) {
		if key[i] < '!' || key[i] > '~' {
			return false
		}
	}
	return len(key) >= 1 && len(key) <= 255
}

// plainOrder reads an object of no other members than issuer, pool, profile and csr, each a text of plain ASCII and there at
// most once. It is not ok where anything else stands in it, right or wrong.
func plainOrder(body []byte) (order client.IssueRequest, ok bool) {
	p := plainReader(body)
	if !p.take('{') {
		return order, false
	}
	for {
		name, ok := p.text()
		if !ok || !p.take(':') {
			return order, false
		}
		var field *string
		most := 255
		switch name {
		case "issuer":
			field = &order.Issuer
		case "pool":
			field = &order.Pool
		case "profile":
			field = &order.Profile
		case "csr":
			field, most = &order.CSR, plainBody
		default:
			return order, false
		}
		value, ok := p.text()
		if !ok || *field != "" || value == "" || len(value) > most {
			return order, false
		}
		*field = value
		if p.take(',') {
			continue
		}
		return order, p.take('}') && p.end()
	}
}

// plainReader is what is left of a body.
type plainReader []byte

// end skips space (RFC 8259 §2), and reports whether nothing follows.
func (p *plainReader) end() bool {
	for len(*p) > 0 && ((*p)[0] == ' ' || (*p)[0] == '\n' || (*p)[0] == '\r' || (*p)[0] == '\t') {
		*p = (*p)[1:]
	}
	return len(*p) == 0
}

func (p *plainReader) take(c byte) bool {
	if p.end() || (*p)[0] != c {
		return false
	}
	*p = (*p)[1:]
	return true
}

// text reads a string of printable ASCII, in which nothing but the end of a line is escaped.
func (p *plainReader) text() (string, bool) {
	if !p.take('"') {
		return "", false
	}
	end := bytes.IndexByte(*p, '"')
	if end < 0 {
		return "", false
	}
	raw := (*p)[:end]
	*p = (*p)[end+1:]
	out := make([]byte, 0, len(raw))
	for i := 0; i < len(raw); i++ {
		c := raw[i]
		if c == '\\' && i+1 < len(raw) && raw[i+1] == 'n' {
			c, i = '\n', i+1
		} else if c < ' ' || c > '~' || c == '\\' {
			return "", false
		}
		out = append(out, c)
	}
	return string(out), true
}
