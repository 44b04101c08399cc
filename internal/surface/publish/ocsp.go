package publish

import (
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"chancery/internal/authority/revocation"
	"chancery/internal/fault"
	"chancery/internal/pki/ocsp"
	"chancery/internal/store/settings"
	"chancery/internal/surface/problem"
)

// ocspPost answers a request in the body. Whatever is wrong with it is said in OCSP's own form, with status 200: RFC 6960
// appendix A knows no other.
func (h *Handler) ocspPost(w http.ResponseWriter, r *http.Request) error {
	limit := int64(ocsp.MaxRequest)
	if set, err := h.settings.Get(r.Context()); err == nil && set.Limits.OCSPBytes > 0 {
		limit = min(limit, set.Limits.OCSPBytes)
	}
	if r.ContentLength > limit {
		w.Header().Set("Connection", "close") // what is still coming is not read
		return h.refuse(w, r, fault.New(fault.Invalid, "OCSP request of %d octets is over the limit of %d",
			r.ContentLength, limit))
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if err != nil {
		if tooLarge := (*http.MaxBytesError)(nil); !errors.As(err, &tooLarge) {
			return fault.New(fault.Invalid, "the OCSP request broke off: %w", err)
		}
		return h.refuse(w, r, fault.New(fault.Invalid, "OCSP request is over the limit of %d octets", limit))
	}
	response, err := h.revocation.Respond(r.Context(), body, h.maySign(r))
	return h.respond(w, r, response, err)
}

func (h *Handler) ocspGet(w http.ResponseWriter, r *http.Request, path string) error {
	der, err := ocsp.DecodePath(path)
	if err != nil {
		return h.refuse(w, r, err)
	}
	response, err := h.revocation.Respond(r.Context(), der, h.maySign(r))
	return h.respond(w, r, response, err)
}

// maySign counts the signatures that an address has made for it alone: a question with a nonce costs it nothing, and the
// node a signature.
func (h *Handler) maySign(r *http.Request) func() error {
	return func() error {
		return h.take(r, h.signatures, func(l settings.Limits) settings.Rate { return l.SignatureRate })
	}
}

func (h *Handler) refuse(w http.ResponseWriter, r *http.Request, err error) error {
	return h.respond(w, r, revocation.Response{DER: ocsp.ErrorResponse(ocsp.MalformedRequest),
		Status: ocsp.MalformedRequest}, err)
}

func (h *Handler) respond(w http.ResponseWriter, r *http.Request, response revocation.Response, err error) error {
	event := problem.EventOf(r.Context())
	event.Add(slog.String("responseStatus", response.Status.String()), slog.Bool("cached", response.Cached))
	if err != nil {
		event.Fail(err)
	}
	header := w.Header()
	get := r.Method != http.MethodPost
	if get && !response.NextUpdate.IsZero() {
		header.Set("Expires", response.NextUpdate.UTC().Format(http.TimeFormat))
		d := document{
			mediaType: ocsp.ResponseType, tag: response.Tag, modified: response.ThisUpdate,
			size: int64(len(response.DER)),
			// Never longer than the whole, whatever the clock says.
			maxAge: min(time.Until(response.NextUpdate), response.NextUpdate.Sub(response.ThisUpdate)),
		}
		if d.send(w, r) {
			w.Write(response.DER) // an error here is a caller that has gone
		}
		return nil
	}
	header.Set("Cache-Control", "no-store")
	header.Set("Content-Type", ocsp.ResponseType)
	header.Set("Content-Length", strconv.Itoa(len(response.DER)))
	if fault.Is(err, fault.RateLimited) {
		// tryLater in OCSP's form, for those who read no status; the status and the time for those who do.
		p := problem.Of(err, event.ID())
		header.Set("Retry-After", problem.Seconds(p.RetryAfter))
		w.WriteHeader(p.Status)
	}
	if r.Method == http.MethodHead {
		return nil
	}
	w.Write(response.DER)
	return nil
}
