package examine

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"syscall"
	"time"

	"chancery/internal/pki/crl"
	"chancery/internal/pki/keyfile"
	"chancery/internal/pki/ocsp"
)

// Limits of what is fetched. Where it lies is a stranger's word, and so is how much it is.
const (
	fetchTimeout  = 10 * time.Second
	fetchTotal    = 60 * time.Second // all fetches of one look together
	mostFetched   = 64 << 20         // and their octets
	mostCRL       = 64 << 20
	mostOCSP      = 64 << 10
	mostIssuer    = 64 << 10
	mostFetches   = 24
	mostRedirects = 3
)

// fetcher fetches what certificates point at: by http alone, directly, and only where a stranger may lead us (see reach.allows).
// It keeps no body, so that what one look holds is one body at a time. A nil one fetches nothing.
type fetcher struct {
	client *http.Client
	left   int
	octets int64
	until  time.Time
	failed map[[sha256.Size]byte]error // an address that failed is not asked again
}

func newFetcher(from reach) *fetcher {
	dialer := &net.Dialer{Timeout: fetchTimeout / 2, Control: func(_, address string, _ syscall.RawConn) error { return from.control(address) }}
	return &fetcher{left: mostFetches, octets: mostFetched, until: time.Now().Add(fetchTotal), failed: map[[sha256.Size]byte]error{}, client: &http.Client{
		Timeout: fetchTimeout,
		Transport: &http.Transport{
			DialContext: dialer.DialContext, DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: checkRedirect,
	}}
}

// checkRedirect lets a fetch be sent on, and a question not: what is posted is for the address that the certificate names. Each
// address that it is sent on to is held against the same ranges when it is connected to.
func checkRedirect(r *http.Request, via []*http.Request) error {
	switch {
	case via[0].Method != http.MethodGet:
		return errors.New("it sends a question on, which is not followed")
	case r.URL.Scheme != "http" || r.URL.User != nil:
		return fmt.Errorf("it is sent on to %s, and only plain http is fetched", shorten(clean(r.URL.Scheme), 20))
	case len(via) > mostRedirects:
		return fmt.Errorf("it is sent on more than %d times", mostRedirects)
	}
	return nil
}

// errElsewhere says that an address is not one of plain http.
var errElsewhere = errors.New("it is no http address")

// Errors of one look's limits.
var (
	errLimit  = fmt.Errorf("more than %d addresses are named, and no more are fetched", mostFetches)
	errOctets = fmt.Errorf("what is fetched in one look has more than %d octets, and no more is fetched", mostFetched)
	errSpent  = fmt.Errorf("what was fetched before took the %s that one look may spend on it", fetchTotal)
)

func (f *fetcher) get(ctx context.Context, address string, limit int64) ([]byte, error) {
	return f.do(ctx, address, nil, limit)
}

// do fetches, or posts where there is a body, at most limit octets.
func (f *fetcher) do(ctx context.Context, address string, body []byte, limit int64) ([]byte, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" || u.Host == "" || u.User != nil {
		return nil, errElsewhere
	}
	key := sha256.Sum256([]byte(u.String() + "\x00" + string(body)))
	if err, ok := f.failed[key]; ok {
		return nil, err
	}
	if f.left--; f.left < 0 {
		return nil, errLimit
	}
	if !time.Now().Before(f.until) {
		return nil, errSpent
	}
	bounded, cancel := context.WithDeadline(ctx, f.until)
	defer cancel()
	got, err := f.ask(bounded, u, body, limit)
	if err != nil {
		if bounded.Err() != nil && ctx.Err() == nil {
			err = errSpent
		}
		f.failed[key] = err
	}
	return got, err
}

func (f *fetcher) ask(ctx context.Context, u *url.URL, body []byte, limit int64) ([]byte, error) {
	method, content := http.MethodGet, io.Reader(http.NoBody)
	if body != nil {
		method, content = http.MethodPost, bytes.NewReader(body)
	}
	r, err := http.NewRequestWithContext(ctx, method, u.String(), content)
	if err != nil {
		return nil, err
	}
	r.Header.Set("User-Agent", "chancery-doctor")
	if body != nil {
		r.Header.Set("Content-Type", ocsp.RequestType)
	}
	answer, err := f.client.Do(r)
	if err != nil {
		var wrapped *url.Error
		if errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("it answers %s", shorten(clean(answer.Status), 60))
	}
	return f.take(answer.Body, limit)
}

// take reads a body within its own limit and what is left of the look's. Octets that were refused count, too.
func (f *fetcher) take(body io.Reader, limit int64) ([]byte, error) {
	var got bytes.Buffer
	most := min(limit, f.octets)
	n, err := got.ReadFrom(io.LimitReader(body, most+1))
	f.octets = max(0, f.octets-n)
	switch {
	case err != nil:
		return nil, err
	case n > limit:
		return nil, fmt.Errorf("it answers with more than %d octets", limit)
	case n > most:
		return nil, errOctets
	}
	return got.Bytes(), nil
}

// issuer fetches the issuer of c, where c says where that is (RFC 5280 section 4.2.2.1); nil where there is none.
func (f *fetcher) issuer(ctx context.Context, c *x509.Certificate) *x509.Certificate {
	if f == nil {
		return nil
	}
	for _, address := range c.IssuingCertificateURL[:min(2, len(c.IssuingCertificateURL))] {
		body, err := f.get(ctx, address, mostIssuer)
		if err != nil {
			continue
		}
		found, err := keyfile.ParseCertificates(body)
		if err != nil {
			continue
		}
		for _, one := range found[:min(8, len(found))] {
			if issued(c, one) {
				return one
			}
		}
	}
	return nil
}

// list fetches a CRL.
func (f *fetcher) list(ctx context.Context, address string) (*crl.List, error) {
	body, err := f.get(ctx, address, mostCRL)
	if err != nil {
		return nil, err
	}
	der, err := crl.FromPEM(body)
	if err != nil {
		return nil, &notOne{err}
	}
	list, err := crl.Parse(der)
	if err != nil {
		return nil, &notOne{err}
	}
	return list, nil
}

// notOne says that something was fetched, and is not what was wanted.
type notOne struct{ err error }

func (e *notOne) Error() string { return sentence(e.err) }
