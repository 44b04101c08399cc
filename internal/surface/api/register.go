package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/store/access"
	"chancery/internal/surface/problem"
	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
)

// route is one line of the table in routes.go.
type route struct {
	method, path string
	id           string // operationId, the log's operation and the metric's label
	summary      string
	action       access.Action // what the caller must be allowed to do
	status       int           // of success; 200 where it is 0
	body         int64         // the largest body; the default where it is 0
	expensive    bool          // shares the gate of expensive calls
	streams      bool          // may take long: no deadline for the whole answer, one for each write instead
	media        []string
	replays      bool // a repeated call gets the answer that the API kept; see replay
	takesBody    bool
	json         reflect.Type // what the answer is where media has JSON
}

// anyone is the action of what every known caller may do.
const anyone access.Action = "anyone"

// register puts an operation into the table, the mux and the OpenAPI document. The order for each request: who calls,
// may he, does he ask too often, and only then is the body read and decoded.
func register[I, O any](s *Server, r route, handle func(context.Context, *I) (*O, error)) {
	op := huma.Operation{
		OperationID: r.id, Method: r.method, Path: client.Prefix + r.path, Summary: r.summary,
		Tags:          []string{strings.SplitN(strings.TrimPrefix(r.path, "/"), "/", 2)[0]},
		DefaultStatus: r.status, MaxBodyBytes: r.body, BodyReadTimeout: s.options.BodyTimeout,
		Security:   []map[string][]string{{"identity": {}}, {"token": {}}},
		Extensions: map[string]any{"x-action": r.action, "x-roles": rolesFor(r.action)},
		Responses:  map[string]*huma.Response{"default": s.problemResponse()},
		// A misspelt filter would silently select everything.
		RejectUnknownQueryParameters: true,
	}
	if op.MaxBodyBytes == 0 {
		op.MaxBodyBytes = smallBody
	}
	op.BodyReadTimeout += time.Duration(op.MaxBodyBytes/minRate) * time.Second
	if len(r.media) > 0 {
		s.describeMedia(&op, r)
	}
	_, r.takesBody = reflect.TypeFor[I]().FieldByName("Body")
	op.Middlewares = huma.Middlewares{s.admit(r)}
	huma.Register(s.huma, op, func(ctx context.Context, in *I) (*O, error) {
		c := callOf(ctx)
		// The deadline for the body has done its work. Left in place it would end the request's context when it passes.
		if err := c.control.SetReadDeadline(time.Time{}); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return nil, c.refuse(err)
		}
		do := func() (*O, error) { return handle(ctx, in) }
		key := ""
		if k, ok := any(in).(interface{ given() string }); ok && r.replays {
			key = k.given()
		}
		out, err := (*O)(nil), error(nil)
		if key != "" {
			out, err = replay(ctx, s, r, key, in, do)
		} else {
			out, err = do()
		}
		if err != nil {
			return nil, c.refuse(err)
		}
		return out, nil
	})
}

// rolesFor are the roles that access allows an action.
func rolesFor(action access.Action) []access.Role {
	if action == anyone {
		return access.Roles
	}
	for _, p := range access.Permissions() {
		if p.Action == action {
			return p.Roles
		}
	}
	return nil
}

const (
	smallBody   = 64 << 10
	csrBody     = 512 << 10 // a CSR of the settings' limit in PEM, with names and a template beside it
	uploadBody  = 16<<20 + 4096
	bodyTimeout = 10 * time.Second
	minRate     = 64 << 10 // octets a second that a large body must come at, or be cut off
	writeStall  = 30 * time.Second
)

// call is what the operations' shared code keeps of a request.
type call struct {
	w       http.ResponseWriter
	r       *http.Request
	control *http.ResponseController
	event   *problem.Event
}

type callKey struct{}

func callOf(ctx context.Context) *call { return ctx.Value(callKey{}).(*call) }

// admit authenticates, authorizes and limits a request before its body is read.
func (s *Server) admit(r route) func(huma.Context, func(huma.Context)) {
	return func(hc huma.Context, next func(huma.Context)) {
		req, w := humago.Unwrap(hc)
		ctx := req.Context()
		c := &call{w: w, r: req, control: http.NewResponseController(w), event: problem.EventOf(ctx)}
		c.event.Route(r.id)
		ctx, err := s.authorize(ctx, c, r)
		if err == nil && !r.takesBody && req.ContentLength != 0 {
			// Nothing would read it, and net/http would wait for its end before the next call.
			w.Header().Set("Connection", "close")
			err = fault.New(fault.Invalid, "%s %s takes no body", r.method, r.path)
		}
		if err != nil {
			problem.Write(w, req, err)
			return
		}
		if r.expensive {
			leave, err := s.expensive.Enter(ctx)
			if err != nil {
				problem.Write(w, req, err)
				return
			}
			defer leave()
		}
		if r.streams {
			c.control.SetWriteDeadline(time.Time{}) // each write sets its own; see stream
		}
		next(huma.WithContext(hc, context.WithValue(ctx, callKey{}, c)))
	}
}

// refusal is a problem as huma writes it.
type refusal struct {
	client.Problem
	header http.Header
}

func (r *refusal) GetStatus() int            { return r.Status }
func (r *refusal) ContentType(string) string { return problem.ContentType }
func (r *refusal) GetHeaders() http.Header   { return r.header }

// refuse makes the wire form of err and notes it in the event.
func (c *call) refuse(err error) error {
	err = problem.Refine(c.r.Context(), err)
	c.event.Fail(err)
	r := &refusal{Problem: *problem.Of(err, c.event.ID()), header: http.Header{}}
	problem.Headers(r.header, &r.Problem)
	return r
}

// ownProblems turns what huma finds wrong with a request into problems of ours. The offending value is left out: it may
// be a secret that was put into the wrong field.
func ownProblems(hc huma.Context, _ string, v any) (any, error) {
	m, ok := v.(*huma.ErrorModel)
	if !ok {
		return v, nil
	}
	kind := fault.Invalid
	if m.Status == http.StatusRequestEntityTooLarge {
		kind = fault.TooLarge
	}
	e := problem.EventOf(hc.Context())
	p := problem.Of(fault.New(kind, "%s", m.Detail), e.ID())
	p.Status = m.Status
	for _, d := range m.Errors {
		p.Errors = append(p.Errors, client.ProblemError{Detail: d.Message, Pointer: pointer(d.Location)})
	}
	if len(p.Errors) > 0 {
		p.Detail, p.Pointer = p.Errors[0].Detail, p.Errors[0].Pointer
	}
	if len(p.Errors) == 1 {
		p.Errors = nil
	}
	e.Fail(fault.New(kind, "%s at %s", p.Detail, p.Pointer))
	hc.SetHeader("Cache-Control", "no-store")
	return p, nil
}

// pointer writes body.names.san[0] as the JSON pointer /names/san/0, and what is no part of the body as its place and name.
func pointer(location string) string {
	rest, isBody := strings.CutPrefix(location, "body")
	if !isBody {
		return strings.Replace(location, ".", " ", 1)
	}
	return strings.NewReplacer(".", "/", "[", "/", "]", "").Replace(rest)
}

// problemResponse documents every answer that is no success.
func (s *Server) problemResponse() *huma.Response {
	return &huma.Response{
		Description: "A problem (RFC 9457)",
		Content: map[string]*huma.MediaType{
			problem.ContentType: {Schema: s.huma.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[client.Problem](), true, "Problem")},
		},
	}
}

// describeMedia documents an answer that huma does not encode.
func (s *Server) describeMedia(op *huma.Operation, r route) {
	content := map[string]*huma.MediaType{}
	for _, media := range r.media {
		schema := &huma.Schema{Type: "string"}
		if media == mediaJSON {
			content[media] = &huma.MediaType{Schema: s.huma.OpenAPI().Components.Schemas.Schema(r.json, true, r.json.Name())}
			continue
		}
		if !strings.HasPrefix(media, "text/") && media != mediaPEM && media != mediaLines {
			schema.Format = "binary"
		}
		content[media] = &huma.MediaType{Schema: schema}
	}
	op.Responses["200"] = &huma.Response{Description: "OK", Content: content}
}

// The media types of answers.
const (
	mediaJSON   = "application/json"
	mediaPEM    = "application/x-pem-file"
	mediaChain  = "application/pem-certificate-chain" // RFC 8555 §9.1
	mediaCert   = "application/pkix-cert"             // RFC 2585 §4.1
	mediaCRL    = "application/pkix-crl"              // RFC 2585 §4.2
	mediaLines  = "application/jsonl"
	mediaCSV    = "text/csv"
	mediaBinary = "application/octet-stream"
)

// negotiate picks the offer that an Accept header likes best (RFC 9110 §12.5.1); the first where it likes all alike.
func negotiate(accept string, offers ...string) (string, error) {
	if accept == "" {
		return offers[0], nil
	}
	best, bestQ := "", 0.0
	for _, offer := range offers {
		if q := quality(accept, offer); q > bestQ {
			best, bestQ = offer, q
		}
	}
	if best == "" {
		return "", fault.New(fault.Invalid, "Accept %q names none of %s", accept, strings.Join(offers, ", "))
	}
	return best, nil
}

// quality is the weight of the most specific range of an Accept header that offer falls in.
func quality(accept, offer string) float64 {
	kind, _, _ := strings.Cut(offer, "/")
	ranges := []string{"*/*", kind + "/*", offer}
	best, q := -1, 0.0
	for part := range strings.SplitSeq(accept, ",") {
		name, parameters, _ := strings.Cut(part, ";")
		i := slices.Index(ranges, strings.ToLower(strings.TrimSpace(name)))
		if i <= best {
			continue
		}
		best, q = i, weight(parameters)
	}
	return q
}

// weight reads the q parameter of a media range; 1 where there is none, 0 where it is no number.
func weight(parameters string) float64 {
	for p := range strings.SplitSeq(parameters, ";") {
		if value, ok := strings.CutPrefix(strings.ToLower(strings.TrimSpace(p)), "q="); ok {
			q, err := strconv.ParseFloat(value, 64)
			if err != nil || q < 0 || q > 1 {
				return 0
			}
			return q
		}
	}
	return 1
}

// stream answers with what write produces, as it comes. Its end is marked by a trailer, because its status is sent before
// anybody knows whether it will succeed; a failure breaks the connection.
func (c *call) stream(media string, write func(io.Writer) error) func(huma.Context) {
	return func(huma.Context) {
		h := c.w.Header()
		h.Set("Content-Type", media)
		h.Set("Cache-Control", "no-store")
		h.Set("Trailer", client.StreamTrailer)
		out := &steady{c: c}
		if err := write(out); err != nil {
			if !out.begun {
				h.Del("Trailer")
				problem.Write(c.w, c.r, err)
				return
			}
			c.event.Fail(err)
			panic(http.ErrAbortHandler)
		}
		if !out.begun {
			c.w.WriteHeader(http.StatusOK)
		}
		h.Set(client.StreamTrailer, "complete")
	}
}

// send answers with a body that is at hand.
func (c *call) send(media string, body []byte) func(huma.Context) {
	return func(huma.Context) {
		h := c.w.Header()
		h.Set("Content-Type", media)
		h.Set("Content-Length", strconv.Itoa(len(body)))
		c.w.WriteHeader(http.StatusOK)
		c.w.Write(body) // an error here is a caller that has gone; the event has the status
	}
}

// sendJSON is send for what is encoded here, because it was negotiated.
func (c *call) sendJSON(v any) (func(huma.Context), error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode the answer: %w", err)
	}
	return c.send(mediaJSON, body), nil
}

// streamSized is stream for an answer whose length is known: net/http breaks the connection where it is not kept.
func (c *call) streamSized(media string, size int64, write func(io.Writer) error) func(huma.Context) {
	return func(huma.Context) {
		h := c.w.Header()
		h.Set("Content-Type", media)
		h.Set("Content-Length", strconv.FormatInt(size, 10))
		out := &steady{c: c}
		if err := write(out); err != nil {
			if !out.begun {
				h.Del("Content-Length")
				problem.Write(c.w, c.r, err)
				return
			}
			c.event.Fail(err)
			panic(http.ErrAbortHandler)
		}
	}
}

// steady writes under a deadline for each piece: a reader that stalls is cut off, a slow one is served to the end.
type steady struct {
	c        *call
	begun    bool
	deadline time.Time
}

func (s *steady) Write(b []byte) (int, error) {
	if now := time.Now(); s.deadline.Sub(now) < writeStall/2 {
		s.deadline = now.Add(writeStall)
		if err := s.c.control.SetWriteDeadline(s.deadline); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return 0, err
		}
	}
	s.begun = true
	return s.c.w.Write(b)
}

// begin sends the status before there is anything to write.
func (s *steady) begin() {
	s.begun = true
	s.c.w.WriteHeader(http.StatusOK)
	s.Flush()
}

// Flush sends what was written so far; for streams whose pieces are worth having early.
func (s *steady) Flush() { s.c.control.Flush() }
