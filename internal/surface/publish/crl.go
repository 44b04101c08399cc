package publish

import (
	"io"
	"net/http"
	"time"

	"chancery/internal/authority/revocation"
	"chancery/internal/fault"
	"chancery/internal/pki/crl"
	"chancery/internal/surface/problem"
)

const (
	crlType = "application/pkix-crl" // RFC 2585 §4.2
	pemType = "application/x-pem-file"

	// crlMaxAge is how long a cache may keep a CRL, which a revocation may replace at any time.
	crlMaxAge = 5 * time.Minute
	// writeTime is what a reader has for each part that is written to it.
	writeTime = time.Minute
)

func (h *Handler) completeCRL(w http.ResponseWriter, r *http.Request) error {
	name, form, err := cut(r.PathValue("file"))
	if err != nil {
		return err
	}
	return h.crl(w, r, name, revocation.Complete, form)
}

func (h *Handler) partialCRL(w http.ResponseWriter, r *http.Request) error {
	name, form, err := cut(r.PathValue("file"))
	if err != nil {
		return err
	}
	scope, err := revocation.ParseScope(name)
	if err != nil || scope == revocation.Complete {
		return fault.New(fault.NotFound, "there is no CRL %.80q of an issuer", name)
	}
	return h.crl(w, r, r.PathValue("issuer"), scope, form)
}

func (h *Handler) crl(w http.ResponseWriter, r *http.Request, issuer string, scope revocation.Scope, form string) error {
	if form != "crl" && form != "pem" {
		return fault.New(fault.NotFound, "a CRL is to be had as .crl (DER) and .pem, not as .%.20s", form)
	}
	list, err := h.revocation.Current(r.Context(), issuer, scope)
	if err != nil {
		return err
	}
	now := time.Now()
	if !now.Before(list.NextUpdate) {
		return fault.New(fault.Unavailable, "the CRL of %s, %s, number %v, ended on %s, and there is no later one here", issuer, scope, list.Number,
			list.NextUpdate.UTC().Format(time.RFC3339)).
			WithHint("the authority's operator: chancery status says why none was signed; of a root whose key is offline, chancery crl issue --issuer %s --key-file F",
				issuer)
	}
	d := document{mediaType: crlType, tag: list.ID, modified: list.ThisUpdate, maxAge: min(crlMaxAge,
		list.NextUpdate.Sub(now)), size: list.Size}
	if form == "pem" {
		d.mediaType, d.tag, d.size = pemType, list.ID+".pem", crl.PEMSize(list.Size)
	}
	w.Header().Set("Expires", list.NextUpdate.UTC().Format(http.TimeFormat))
	if !d.send(w, r) {
		return nil
	}
	if err := h.stream(w, r, list, form); err != nil {
		// The status is out. Only breaking the connection tells the reader that the list is not whole.
		problem.EventOf(r.Context()).Fail(err)
		panic(http.ErrAbortHandler)
	}
	return nil
}

func (h *Handler) stream(w http.ResponseWriter, r *http.Request, list *revocation.List, form string) error {
	patient := &patientWriter{w: w, control: http.NewResponseController(w)}
	if form != "pem" {
		return h.revocation.WriteTo(r.Context(), patient, list)
	}
	text := crl.NewPEMWriter(patient)
	if err := h.revocation.WriteTo(r.Context(), text, list); err != nil {
		return err
	}
	return text.Close()
}

// patientWriter gives a reader time anew for each part: a long list over a slow line takes longer than any fixed limit, and
// one who reads nothing is still sent away.
type patientWriter struct {
	w       io.Writer
	control *http.ResponseController
	until   time.Time
}

func (p *patientWriter) Write(part []byte) (int, error) {
	written := 0
	for len(part) > 0 {
		if now := time.Now(); p.until.Sub(now) < writeTime/2 {
			p.until = now.Add(writeTime)
			// Writers that have no deadline, as tests', have nothing to prolong.
			_ = p.control.SetWriteDeadline(p.until)
		}
		n, err := p.w.Write(part[:min(len(part), 64<<10)])
		written += n
		if err != nil {
			return written, err
		}
		part = part[n:]
	}
	return written, nil
}
