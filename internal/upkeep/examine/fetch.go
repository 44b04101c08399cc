package examine

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"chancery/internal/pki/crl"
	"chancery/internal/pki/keyfile"
	"chancery/internal/pki/ocsp"
)

// Limits of what is fetched. Where it lies is a stranger's word.
const (
	fetchTimeout  = 10 * time.Second
	mostCRL       = 64 << 20
	mostOCSP      = 64 << 10
	mostIssuer    = 64 << 10
	mostFetches   = 24
	mostRedirects = 3
)

// fetcher fetches what certificates point at: by http alone, directly, each address once. A nil one fetches nothing.
type fetcher struct {
	client *http.Client
	left   int
	known  map[string]fetched
}

type fetched struct {
	body []byte
	err  error
}

func newFetcher() *fetcher {
	return &fetcher{left: mostFetches, known: map[string]fetched{}, client: &http.Client{
		Timeout: fetchTimeout,
		Transport: &http.Transport{
			DialContext: (&net.Dialer{Timeout: fetchTimeout / 2}).DialContext, DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			if r.URL.Scheme != "http" {
				return fmt.Errorf("it is sent on to %s, and only http is fetched", shorten(clean(r.URL.Scheme), 20))
			}
			if len(via) > mostRedirects {
				return fmt.Errorf("it is sent on more than %d times", mostRedirects)
			}
			return nil
		},
	}}
}

// errElsewhere says that an address is not one of plain http.
var errElsewhere = errors.New("it is no http address")

// errLimit says that a peer's certificates point at more than is fetched.
var errLimit = fmt.Errorf("more than %d addresses are named, and no more are fetched", mostFetches)

func (f *fetcher) get(ctx context.Context, address string, limit int64) ([]byte, error) {
	return f.do(ctx, address, nil, limit)
}

// do fetches, or posts where there is a body, at most limit octets.
func (f *fetcher) do(ctx context.Context, address string, body []byte, limit int64) ([]byte, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" || u.Host == "" || u.User != nil {
		return nil, errElsewhere
	}
	key := u.String() + "\x00" + string(body)
	if had, ok := f.known[key]; ok {
		return had.body, had.err
	}
	if f.left--; f.left < 0 {
		return nil, errLimit
	}
	got, err := f.ask(ctx, u, body, limit)
	f.known[key] = fetched{got, err}
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
	got, err := io.ReadAll(io.LimitReader(answer.Body, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(got)) > limit {
		return nil, fmt.Errorf("it answers with more than %d octets", limit)
	}
	return got, nil
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
