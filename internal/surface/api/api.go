// Package api is the API under /api/v1: it decodes a call, calls one method of a service, and encodes what comes of it.
//
// JSON over HTTP (RFC 9110), problems as RFC 9457 says, described by the OpenAPI 3.1 document that the node serves at
// /api/v1/openapi.json. The table of all operations, with who may call each, is in routes.go.
//
// Lists are Paged by key. Every mutating call takes an Idempotency-Key; a caller that sends none is given a random one,
// and then a repetition is another call. Divergences: Idempotency-Key is a bare string and not a structured field, as the
// expired draft-ietf-httpapi-idempotency-key-header would have it; an answer that is streamed ends with the trailer
// "X-Stream: complete", without which it is not whole.
package api

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/pki/checkpoint"
	"chancery/internal/store/keys"
	"chancery/internal/store/once"
	"chancery/internal/surface/problem"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/setup"
	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/prometheus/client_golang/prometheus"
)

// Server is the API as an http.Handler.
type Server struct {
	*setup.Services
	options   Options
	started   time.Time
	handler   http.Handler
	mux       *http.ServeMux
	huma      huma.API
	document  []byte
	auth      *authenticator
	names     *names
	expensive *problem.Gate
	operators *problem.RateLimiter
	hosts     *problem.RateLimiter
	strangers *problem.RateLimiter // by address, for those who did not prove who they are
	joins     *problem.RateLimiter // by address, for machines that join: many of them may stand behind one
}

// Options are what the API needs beside the services.
type Options struct {
	Logger      *slog.Logger
	Registry    prometheus.Registerer
	Version     string         // of the program
	Expensive   int            // expensive calls at once
	Proxies     []netip.Prefix // that may send Client-Cert (RFC 9440)
	BodyTimeout time.Duration  // how long a small body may take to come; 0 means 10s. Large ones get a second more for each 64 KiB
	Checkpoints Checkpoints
	Dir         datadir.Dir // whose files doctor looks at
	// Subsystems are what the node runs; none means all. Without ca, what needs an issuer's key is refused.
	Subsystems []keys.Subsystem
}

// Checkpoints signs the audit's checkpoints.
type Checkpoints interface {
	Sign(ctx context.Context, call once.Call) (*checkpoint.Signed, error)
}

// callers is how many callers of each sort the rate limits remember.
const callers = 1 << 15

// guesses is how often a stranger may be wrong at once.
const guesses = 200

// New puts the API together; it starts nothing.
func New(services *setup.Services, o Options) (*Server, error) {
	if o.BodyTimeout == 0 {
		o.BodyTimeout = bodyTimeout
	}
	s := &Server{
		Services: services, options: o, started: time.Now(), mux: http.NewServeMux(),
		auth:      &authenticator{identities: services.Identity, access: services.Access, proxies: o.Proxies},
		names:     &names{access: services.Access},
		expensive: problem.NewGate(max(o.Expensive, 1), 5*time.Second),
		operators: problem.NewRateLimiter(0, 1, callers), hosts: problem.NewRateLimiter(0, 1, callers),
		strangers: problem.NewRateLimiter(20, guesses, callers), joins: problem.NewRateLimiter(200, 4000, callers),
	}
	s.huma = humago.New(s.mux, configuration(o.Version))
	s.routes()
	for _, name := range []string{"ErrorModel", "ErrorDetail"} { // huma's own, which no answer is; see ownProblems
		delete(s.huma.OpenAPI().Components.Schemas.Map(), name)
	}
	var err error
	if s.document, err = json.MarshalIndent(s.huma.OpenAPI(), "", "  "); err != nil {
		return nil, fmt.Errorf("describe the API: %w", err)
	}
	s.mux.HandleFunc("GET "+client.Prefix+"/openapi.json", s.serveDocument)
	s.mux.HandleFunc("/", s.unknown)
	// A client certificate in a browser is sent along with whatever another site has it ask.
	foreign := http.NewCrossOriginProtection()
	foreign.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		problem.Write(w, r, fault.New(fault.Denied, "the call was made by a page of another origin"))
	}))
	s.handler = problem.Observe(o.Logger, slog.LevelInfo, problem.NewMetrics(o.Registry, "api"), problem.Security(foreign.Handler(s.mux)))
	return s, nil
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

// Document is the OpenAPI document.
func (s *Server) Document() []byte { return s.document }

// configuration is huma without what it adds of its own: no $schema links, no documentation pages, JSON only.
func configuration(version string) huma.Config {
	schemas := huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer)
	return huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{
				Title: "Chancery", Version: version,
				Description: "The API of a Chancery node. Callers prove who they are by a client certificate under the identity root, or by a token; " +
					"operations without security are for machines that join.",
			},
			Components: &huma.Components{
				Schemas: schemas,
				SecuritySchemes: map[string]*huma.SecurityScheme{
					"identity": {Type: "mutualTLS", Description: "a client certificate under the identity root"},
					"token":    {Type: "http", Scheme: "bearer", Description: "an operator's token"},
				},
			},
		},
		Formats:       map[string]huma.Format{mediaJSON: huma.DefaultJSONFormat, problem.ContentType: huma.DefaultJSONFormat},
		DefaultFormat: mediaJSON,
		Transformers:  []huma.Transformer{ownProblems},
	}
}

func (s *Server) serveDocument(w http.ResponseWriter, r *http.Request) {
	problem.EventOf(r.Context()).Route("openapi")
	from, _ := problem.Address(r.RemoteAddr)
	if err := s.strangers.Take(from, time.Now()); err != nil {
		problem.Write(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/openapi+json;version=3.1")
	w.Write(s.document)
}

// unknown answers for paths and methods that no operation has.
func (s *Server) unknown(w http.ResponseWriter, r *http.Request) {
	var allowed []string
	for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
		probe := *r
		probe.Method = method
		if _, pattern := s.mux.Handler(&probe); pattern != "/" && pattern != "" {
			allowed = append(allowed, method)
		}
	}
	if len(allowed) == 0 {
		problem.Write(w, r, fault.New(fault.NotFound, "there is nothing at %s", r.URL.Path).
			WithHint("%s/openapi.json lists what there is", client.Prefix))
		return
	}
	w.Header().Set("Allow", strings.Join(allowed, ", "))
	e := problem.EventOf(r.Context())
	err := fault.New(fault.Invalid, "%s takes %s, not %s", r.URL.Path, strings.Join(allowed, ", "), r.Method)
	e.Fail(err)
	p := problem.Of(err, e.ID())
	p.Status = http.StatusMethodNotAllowed
	problem.WriteProblem(w, p)
}
