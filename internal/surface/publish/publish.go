// Package publish serves what relying parties fetch over plain http: CRLs, OCSP answers and issuers' certificates.
//
// RFC 5280 §4.2.1.13 and §4.2.2.1 (the URLs in certificates), RFC 2585 (media types), RFC 6960 appendix A and RFC 5019 §6
// (OCSP over HTTP), RFC 9110 and RFC 9111 (conditional requests, caching). All of it is signed, so nothing is lost by plain
// http, and a CRL fetched over https could need that very CRL (RFC 5280 §8).
//
//	GET  /crl/{issuer}.crl, .pem            the complete CRL
//	GET  /crl/{issuer}/delta.crl, .pem      the delta CRL
//	GET  /crl/{issuer}/{n}.crl, .pem        the CRL of partition n
//	GET  /ca/{issuer}.cer, .pem, .p7c       the issuer's certificate; .p7c with those above it
//	GET  /ocsp/{request}                    RFC 6960 A.1.1
//	POST /ocsp                              RFC 6960 A.1.2
//
// Divergences:
//   - A CRL may be kept by caches for five minutes and not until its nextUpdate, because a newer one may replace it at any
//     time; after that a conditional request costs a few octets. OCSP answers may be kept until nextUpdate, as RFC 5019
//     §6.2 says; who wants none that is older asks with a nonce, or by POST.
//   - A CRL past its nextUpdate is not served: 503, and the reason. It is no statement any more, and who took it for one would
//     not learn that the authority is in trouble.
//   - While no database answers, CRLs and OCSP answers come from what the node keeps in memory.
//   - Ranges are not served.
package publish

import (
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/authority/revocation"
	"chancery/internal/fault"
	"chancery/internal/store/settings"
	"chancery/internal/surface/problem"
)

// Handler serves relying parties.
type Handler struct {
	revocation *revocation.Service
	ca         *ca.CA
	settings   *settings.Store
	mux        *http.ServeMux
	proxies    []netip.Prefix
	requests   *problem.RateLimiter // by address
	signatures *problem.RateLimiter // by address: answers that are signed for one request
}

// callers is how many addresses the rate limits remember.
const callers = 1 << 16

// New returns the handler. Limits on connections and the log of requests are the server's. What comes from the proxies is
// not counted, since many stand behind one address.
func New(r *revocation.Service, c *ca.CA, s *settings.Store, proxies []netip.Prefix) *Handler {
	h := &Handler{
		revocation: r, ca: c, settings: s, mux: http.NewServeMux(), proxies: proxies,
		requests: problem.NewRateLimiter(0, 1, callers), signatures: problem.NewRateLimiter(0, 1, callers),
	}
	h.mux.Handle("GET /crl/{file}", h.handle("publish.crl", h.completeCRL))
	h.mux.Handle("GET /crl/{issuer}/{file}", h.handle("publish.crl", h.partialCRL))
	h.mux.Handle("GET /ca/{file}", h.handle("publish.certificate", h.certificate))
	h.mux.Handle("POST /ocsp", h.handle("publish.ocsp", h.ocspPost))
	h.mux.Handle("POST /ocsp/{$}", h.handle("publish.ocsp", h.ocspPost))
	return h
}

// ServeHTTP takes OCSP requests by GET out before the mux, which would clean their path: two slashes in base64 are not one.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := h.take(r, h.requests, func(l settings.Limits) settings.Rate { return l.PublicRate }); err != nil {
		h.handle("publish.limited", func(http.ResponseWriter, *http.Request) error { return err }).ServeHTTP(w, r)
		return
	}
	request, ok := strings.CutPrefix(r.URL.EscapedPath(), "/ocsp/")
	if ok && request != "" && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
		h.handle("publish.ocsp", func(w http.ResponseWriter, r *http.Request) error {
			return h.ocspGet(w, r, request)
		}).ServeHTTP(w, r)
		return
	}
	h.mux.ServeHTTP(w, r)
}

// take takes a request from the bucket of its address, of the size that the settings say. Settings that cannot be read
// limit nobody: what is cached can still be answered.
func (h *Handler) take(r *http.Request, limiter *problem.RateLimiter, of func(settings.Limits) settings.Rate) error {
	counted, addr := problem.Address(r.RemoteAddr)
	if problem.Within(h.proxies, addr) {
		return nil
	}
	if set, err := h.settings.Get(r.Context()); err == nil {
		rate := of(set.Limits)
		limiter.Set(rate.PerSecond, int(rate.Burst))
	}
	return limiter.Take(counted, time.Now())
}

func (h *Handler) handle(operation string, serve func(http.ResponseWriter, *http.Request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		problem.EventOf(r.Context()).Route(operation)
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if err := serve(w, r); err != nil {
			w.Header().Set("Cache-Control", "no-store")
			problem.Write(w, r, err)
		}
	})
}

// cut splits a file name into what it names and its form.
func cut(file string) (name, form string, err error) {
	name, form, ok := strings.Cut(file, ".")
	if !ok || name == "" {
		return "", "", fault.New(fault.NotFound, "there is nothing of the name %.80q", file)
	}
	return name, form, nil
}

// document is the metadata of what is served: its validators and how long it may be kept.
type document struct {
	mediaType string
	tag       string
	modified  time.Time
	maxAge    time.Duration
	size      int64
}

// send writes the header, and reports whether a body is wanted: not after HEAD, nor when the caller has it already.
// The keys are written as http.Header has them, since OCSP answers are sent so often that this can be measured.
func (d *document) send(w http.ResponseWriter, r *http.Request) bool {
	header := w.Header()
	now := time.Now()
	values := []string{problem.ETag(d.tag), "", "none", "", d.mediaType, ""}
	header["Etag"], header["Accept-Ranges"] = values[0:1:1], values[2:3:3]
	if d.settled(now) {
		values[1] = d.modified.UTC().Format(http.TimeFormat)
		header["Last-Modified"] = values[1:2:2]
	}
	if len(header["Cache-Control"]) == 0 {
		values[3] = "public, max-age=" + strconv.FormatInt(max(0, int64(d.maxAge.Seconds())), 10) + ", must-revalidate, no-transform"
		header["Cache-Control"] = values[3:4:4]
	}
	if d.unchanged(r, now) {
		w.WriteHeader(http.StatusNotModified)
		return false
	}
	values[5] = strconv.FormatInt(d.size, 10)
	header["Content-Type"], header["Content-Length"] = values[4:5:5], values[5:6:6]
	w.WriteHeader(http.StatusOK)
	return r.Method != http.MethodHead
}

// settled is how old a document must be before it is given a date, and asked for by it. Dates are whole seconds, so a list
// that is replaced within its second has the date of the next one (RFC 9110 §8.8.2.2); it never lives to be given it.
const settled = 2 * time.Second

func (d *document) settled(now time.Time) bool { return now.Sub(d.modified) >= settled }

// unchanged is RFC 9110 §13.2.2: If-None-Match decides where it is there, and If-Modified-Since otherwise. Only the very date
// that was given counts: one of the reader's own clock may lie between thisUpdate and the moment at which the list was there
// to be had.
func (d *document) unchanged(r *http.Request, now time.Time) bool {
	if tags := strings.Join(r.Header.Values("If-None-Match"), ","); tags != "" {
		return problem.NoneMatch(tags, problem.ETag(d.tag))
	}
	text := r.Header.Get("If-Modified-Since")
	if text == "" {
		return false
	}
	since, err := http.ParseTime(text)
	return err == nil && d.settled(now) && d.modified.Truncate(time.Second).Equal(since)
}
