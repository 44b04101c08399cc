package api

import (
	"context"
	"errors"
	"net/http"
	"reflect"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
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
	conditional  bool          // is answered 304 where the caller knows the answer
	signs        bool          // needs the key of an issuer, or makes one: refused where the subsystem ca does not run
	lateRenewal  bool          // a certificate that has ended proves its owner here for a while; see identity.Grace
	media        []string
	takesBody    bool
	plain        func(huma.Context, func(huma.Context)) // answers plain calls by itself; nil for most
	json         reflect.Type                           // what the answer is where media has JSON
}

const (
	// anyone is the action of what every known caller may do.
	anyone access.Action = "anyone"
	// stranger is the action of what callers do who are not known yet. Such calls are counted by address.
	stranger access.Action = "stranger"
)

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
	if r.action == stranger {
		op.Security = nil // the document asks for nothing as a whole, so none is needed here
	}
	if len(r.media) > 0 {
		s.describeMedia(&op, r)
	}
	if r.conditional {
		op.Responses["304"] = &huma.Response{Description: "Still what If-None-Match names"}
	}
	_, r.takesBody = reflect.TypeFor[I]().FieldByName("Body")
	op.Middlewares = huma.Middlewares{s.admit(r)}
	if r.plain != nil {
		op.Middlewares = append(op.Middlewares, r.plain)
	}
	huma.Register(s.huma, op, func(ctx context.Context, in *I) (*O, error) {
		c := callOf(ctx)
		// The deadline for the body has done its work. Left in place it would end the request's context when it passes.
		if err := c.control.SetReadDeadline(time.Time{}); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return nil, c.refuse(err)
		}
		out, err := handle(ctx, in)
		if errors.Is(err, db.ErrReadsOnly) {
			if elsewhere := s.runsCA(ctx); elsewhere != nil {
				err = elsewhere
			}
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
	reportBody  = 1 << 20   // of 64 placements, each with its files and facts
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

	operation string // its ID
}

type callKey struct{}

func callOf(ctx context.Context) *call { return ctx.Value(callKey{}).(*call) }

// admit authenticates, authorizes and limits a request before its body is read.
func (s *Server) admit(r route) func(huma.Context, func(huma.Context)) {
	return func(hc huma.Context, next func(huma.Context)) {
		req, w := humago.Unwrap(hc)
		ctx := req.Context()
		c := &call{w: w, r: req, control: http.NewResponseController(w), event: problem.EventOf(ctx), operation: r.id}
		c.event.Route(r.id)
		ctx, err := s.authorize(ctx, c, r)
		if err == nil && r.signs {
			err = s.runsCA(ctx)
		}
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
