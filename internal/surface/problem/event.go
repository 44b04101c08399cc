package problem

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"chancery/internal/fault"
	"chancery/internal/store/access"
	"github.com/prometheus/client_golang/prometheus"
)

// Event is the one wide event that a request leaves in the log. Handlers add what they learn; nothing secret may be
// added, and no header, query or body is ever taken over as a whole.
type Event struct {
	id    string
	start time.Time

	mu    sync.Mutex // guards what follows: a handler may work in several goroutines
	attrs []slog.Attr
	route string
	kind  fault.Kind
	cause error // what was hidden from the caller
}

type eventKey struct{}

// EventOf returns the event of the request that ctx belongs to; outside a request an event that goes nowhere.
func EventOf(ctx context.Context) *Event {
	if e, ok := ctx.Value(eventKey{}).(*Event); ok {
		return e
	}
	return &Event{}
}

// ID is the request's ID, made by this node: a caller's own would let it forge log lines.
func (e *Event) ID() string { return e.id }

// Add adds attributes to the event.
func (e *Event) Add(attrs ...slog.Attr) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.attrs = append(e.attrs, attrs...)
}

// Route names the operation; it is also the metric's label, so it comes from a closed set.
func (e *Event) Route(operation string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.route = operation
}

// Fail notes why the request was not answered as asked. The first failure counts: later ones follow from it.
func (e *Event) Fail(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.kind == "" {
		e.kind, e.cause = fault.KindOf(err), err
	}
}

// Metrics counts requests and measures them, for one surface.
type Metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	inFlight prometheus.Gauge
}

// NewMetrics registers a surface's metrics. Labels are operations and kinds, both closed sets.
func NewMetrics(registry prometheus.Registerer, surface string) *Metrics {
	labels := prometheus.Labels{"surface": surface}
	m := &Metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "chancery_requests_total", ConstLabels: labels,
			Help: "Requests answered, by operation and outcome (ok, or the kind of refusal).",
		}, []string{"operation", "outcome"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "chancery_request_seconds", ConstLabels: labels,
			Help:    "Time from the request's header to the end of its answer.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 60},
		}, []string{"operation"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "chancery_requests_in_flight", ConstLabels: labels, Help: "Requests being answered now.",
		}),
	}
	registry.MustRegister(m.requests, m.seconds, m.inFlight)
	return m
}

// Observe gives each request its ID and its event, recovers panics, and at the end writes the event at the level given, or
// as an error where it is one, and counts it.
func Observe(logger *slog.Logger, level slog.Level, m *Metrics, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e := &Event{id: rand.Text(), start: time.Now(), route: "none"}
		rec := &recorder{ResponseWriter: w}
		r = r.WithContext(context.WithValue(r.Context(), eventKey{}, e))
		w.Header().Set("X-Request-Id", e.id)
		m.inFlight.Inc()
		defer func() {
			p := recover()
			m.inFlight.Dec()
			aborted := e.finish(rec, r, p)
			m.count(e)
			e.log(r.Context(), logger, level, r, rec)
			if aborted {
				// The status is out; only breaking the connection tells the caller that the answer is not whole.
				panic(http.ErrAbortHandler)
			}
		}()
		next.ServeHTTP(rec, r)
	})
}

// finish answers for a handler that panicked, and reports whether the connection must be broken instead.
func (e *Event) finish(rec *recorder, r *http.Request, p any) (abort bool) {
	if p == nil {
		return false
	}
	if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		e.Fail(fault.New(fault.Unavailable, "the answer was broken off"))
		return true
	}
	e.Add(slog.Any("panic", p), slog.String("stack", string(debug.Stack())))
	e.Fail(errors.New("panic in the handler"))
	if rec.status != 0 {
		return true
	}
	WriteProblem(rec, Of(errors.New("panic"), e.id))
	return false
}

func (m *Metrics) count(e *Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	outcome := "ok"
	if e.kind != "" {
		outcome = string(e.kind)
	}
	m.requests.WithLabelValues(e.route, outcome).Inc()
	m.seconds.WithLabelValues(e.route).Observe(time.Since(e.start).Seconds())
}

func (e *Event) log(ctx context.Context, logger *slog.Logger, level slog.Level, r *http.Request, rec *recorder) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.kind == fault.Internal {
		level = slog.LevelError
	}
	if !logger.Enabled(ctx, level) {
		return
	}
	attrs := append(make([]slog.Attr, 0, len(e.attrs)+11),
		slog.String("request_id", e.id), slog.String("operation", e.route), slog.String("method", r.Method),
		slog.String("path", access.Redact(r.URL.Path)), slog.String("remote", r.RemoteAddr), slog.Int("status", rec.status),
		slog.Int64("bytes", rec.bytes), slog.Duration("duration", time.Since(e.start)))
	if e.kind != "" {
		attrs = append(attrs, slog.String("kind", string(e.kind)), slog.String("reason", access.Redact(e.cause.Error())))
	}
	logger.LogAttrs(ctx, level, "request", append(attrs, e.attrs...)...)
}

// recorder sees the status and counts the bytes. Unwrap lets http.ResponseController reach deadlines and Flush.
type recorder struct {
	http.ResponseWriter
	status int
	bytes  int64
}

func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 && status >= 200 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	n, err := r.ResponseWriter.Write(b)
	r.bytes += int64(n)
	return n, err
}
