package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"
)

// Prefix is the path under which a node serves this API.
const Prefix = "/api/v1"

// maxAnswer bounds an answer that is read into memory; what may be longer is streamed.
const maxAnswer = 32 << 20

// retryAfter says how long to wait before each repetition of a call that may be repeated: four tries in about two seconds.
// A node that names a time in Retry-After is obeyed instead, up to maxRetryAfter.
var retryAfter = [...]time.Duration{50 * time.Millisecond, 300 * time.Millisecond, 1500 * time.Millisecond}

const maxRetryAfter = 30 * time.Second

// Options say which node to talk to, which root it must chain to, and who is calling.
type Options struct {
	// Address is https://HOST:PORT of a node.
	Address string

	// Roots holds the pinned identity root. It is never the system's trust store.
	Roots *x509.CertPool

	// ServerName is the name to expect in the node's certificate, where it is not the address's host.
	ServerName string

	// Certificate returns the caller's identity. It is asked at each handshake, so a renewed identity is taken up by
	// the next connection. Nil where the caller has a token, or is nobody.
	Certificate func() (*tls.Certificate, error)

	// Token is the secret of an operator's token; it is sent only over TLS to a server under Roots.
	Token string

	// UserAgent names the program in the node's log.
	UserAgent string

	// NoRetry turns repetition off: each call is tried once.
	NoRetry bool

	// Now is the time by which the node's certificate is judged; time.Now where it is nil.
	Now func() time.Time

	// Clock is told the node's time, to the second, with each answer: a program whose own clock is off learns of it.
	Clock func(node time.Time)
}

// Client is a connection to one node.
type Client struct {
	base      *url.URL
	http      *http.Client
	token     string
	userAgent string
	noRetry   bool
	clock     func(time.Time)
}

// New returns a client; it connects at the first call.
func New(o Options) (*Client, error) {
	base, err := url.Parse(o.Address)
	if err != nil {
		return nil, fmt.Errorf("parse address: %w", err)
	}
	if base.Scheme != "https" || base.Host == "" || strings.Trim(base.Path, "/") != "" || base.User != nil {
		return nil, fmt.Errorf("address %q is not of the form https://HOST:PORT", o.Address)
	}
	if o.Roots == nil {
		return nil, errors.New("no identity root given: a node's certificate is never checked against the system's roots")
	}
	if strings.ContainsAny(o.Token, "\r\n\x00 ") {
		return nil, errors.New("the token holds white space or a control character: read it trimmed, one line")
	}
	config := &tls.Config{RootCAs: o.Roots, ServerName: o.ServerName, MinVersion: tls.VersionTLS12, Time: o.Now}
	if o.Certificate != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return o.Certificate() }
	}
	transport := &http.Transport{
		// A proxy from the environment would see only TLS, but it would also learn every node and decide who may be
		// reached. A proxy for nodes is configured where the nodes are.
		Proxy:                 nil,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:       config,
		TLSHandshakeTimeout:   10 * time.Second,
		MaxIdleConnsPerHost:   64,
		IdleConnTimeout:       90 * time.Second,
		ResponseHeaderTimeout: 2 * time.Minute,
		DisableCompression:    true,
	}
	userAgent := o.UserAgent
	if userAgent == "" {
		userAgent = "chancery-client"
	}
	return &Client{
		base: &url.URL{Scheme: base.Scheme, Host: base.Host},
		http: &http.Client{
			Transport: &connections{now: transport},
			// Nodes never redirect, and a redirect would carry a token elsewhere.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		token: o.Token, userAgent: userAgent, noRetry: o.NoRetry, clock: o.Clock,
	}, nil
}

// Close drops the idle connections, and those in use when their calls are over: later calls show what Certificate gives then.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// connections are made anew after CloseIdleConnections. A connection that is in use then would be idle later, and prove its
// caller by what it showed when it was made.
type connections struct {
	mu  sync.Mutex
	now *http.Transport
}

func (c *connections) RoundTrip(r *http.Request) (*http.Response, error) {
	c.mu.Lock()
	now := c.now
	c.mu.Unlock()
	return now.RoundTrip(r)
}

// CloseIdleConnections is what http.Client calls.
func (c *connections) CloseIdleConnections() {
	c.mu.Lock()
	before := c.now
	c.now = before.Clone()
	c.mu.Unlock()
	before.CloseIdleConnections()
}

// Address is the address of the node.
func (c *Client) Address() string { return c.base.String() }

// RootsFile reads the pinned root from a PEM file.
func RootsFile(file string) (*x509.CertPool, error) {
	text, err := readFile(file)
	if err != nil {
		return nil, fmt.Errorf("read identity root: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("read identity root: %s holds no certificate", file)
	}
	return pool, nil
}

// CertificateFiles returns an Options.Certificate that reads the pair of files anew at each handshake.
func CertificateFiles(certFile, keyFile string) func() (*tls.Certificate, error) {
	return func() (*tls.Certificate, error) {
		certificate, err := readFile(certFile)
		if err != nil {
			return nil, fmt.Errorf("load identity: %w", err)
		}
		key, err := readFile(keyFile)
		if err != nil {
			return nil, fmt.Errorf("load identity: %w", err)
		}
		pair, err := tls.X509KeyPair(certificate, key)
		if err != nil {
			return nil, fmt.Errorf("load identity: %w", err)
		}
		return &pair, nil
	}
}

// maxFile is far above any file with a key, a certification path or a root.
const maxFile = 1 << 20

// readFile reads a regular file of at most maxFile octets: a FIFO would be waited for without an end, and a device has none.
func readFile(path string) ([]byte, error) {
	check := func(st fs.FileInfo) error {
		if !st.Mode().IsRegular() {
			return fmt.Errorf("%s is no regular file; one of at most %d octets would pass", path, maxFile)
		}
		if st.Size() > maxFile {
			return fmt.Errorf("%s has %d octets; a regular file of at most %d would pass", path, st.Size(), maxFile)
		}
		return nil
	}
	st, err := os.Stat(path) // before it is opened, which a FIFO makes wait
	if err == nil {
		err = check(st)
	}
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|openNow, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err = f.Stat(); err == nil {
		err = check(st)
	}
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(f, maxFile))
}

type idempotencyKey struct{}

// WithIdempotencyKey sets the key of the one mutating call made with the returned context. Without it each call draws
// its own, which covers repetitions within the call; a program that must survive its own crash keeps the key itself.
func WithIdempotencyKey(ctx context.Context, key string) context.Context {
	return context.WithValue(ctx, idempotencyKey{}, key)
}

// call is one request as it is repeated.
type call struct {
	method string
	path   string // under Prefix, each segment escaped already
	query  url.Values
	header http.Header
	in     any    // encoded as JSON, unless body is set
	body   []byte // sent as it is
	accept string
}

// do makes the call and decodes a JSON answer into out, which may be nil.
func (c *Client) do(ctx context.Context, k call, out any) error {
	_, err := c.header(ctx, k, out)
	return err
}

func (c *Client) header(ctx context.Context, k call, out any) (http.Header, error) {
	resp, err := c.send(ctx, k)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var buffer bytes.Buffer
	buffer.Grow(4 << 10) // most answers fit
	if _, err := buffer.ReadFrom(io.LimitReader(resp.Body, maxAnswer+1)); err != nil {
		return nil, fmt.Errorf("%s %s: read answer: %w", k.method, k.path, err)
	}
	body := buffer.Bytes()
	if len(body) > maxAnswer {
		return nil, fmt.Errorf("%s %s: the answer is over %d bytes", k.method, k.path, maxAnswer)
	}
	switch out := out.(type) {
	case nil:
	case *[]byte:
		*out = body
	default:
		if err := json.Unmarshal(body, out); err != nil {
			return nil, fmt.Errorf("%s %s: decode answer: %w", k.method, k.path, err)
		}
	}
	return resp.Header, nil
}

// stream makes the call and copies the answer to w as it comes.
func (c *Client) stream(ctx context.Context, k call, w io.Writer) error {
	resp, err := c.send(ctx, k)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(w, resp.Body); err != nil {
		return fmt.Errorf("%s %s: read answer: %w", k.method, k.path, err)
	}
	return complete(resp, k)
}

// complete refuses an answer that was cut off. What is streamed may break after its status was sent, so the node says in
// a trailer that it reached the end; where the length was announced, net/http has counted already.
func complete(resp *http.Response, k call) error {
	if resp.ContentLength < 0 && resp.Trailer.Get(StreamTrailer) != "complete" {
		return fmt.Errorf("%s %s: the node broke off in the middle of its answer", k.method, k.path)
	}
	return nil
}

// StreamTrailer is the trailer that ends every streamed answer, with the value "complete". An answer without it was
// cut off.
const StreamTrailer = "X-Stream"

// send encodes the call once, and repeats it while that is safe and worth while.
func (c *Client) send(ctx context.Context, k call) (*http.Response, error) {
	body := k.body
	if k.in != nil {
		var err error
		if body, err = json.Marshal(k.in); err != nil {
			return nil, fmt.Errorf("%s %s: encode: %w", k.method, k.path, err)
		}
	}
	header := c.headers(ctx, k, body != nil)
	for try := 0; ; try++ {
		resp, err := c.once(ctx, k, header, body)
		if err == nil {
			return resp, nil
		}
		wait, again := c.again(ctx, err, try)
		if !again {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w (after: %w)", ctx.Err(), err)
		case <-time.After(wait):
		}
	}
}

func (c *Client) headers(ctx context.Context, k call, hasBody bool) http.Header {
	h := http.Header{"User-Agent": {c.userAgent}, "Accept": {"application/json"}}
	if k.accept != "" {
		h.Set("Accept", k.accept)
	}
	if hasBody {
		h.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		h.Set("Authorization", "Bearer "+c.token)
	}
	if k.method != http.MethodGet {
		key, _ := ctx.Value(idempotencyKey{}).(string)
		if key == "" {
			key = rand.Text()
		}
		h.Set("Idempotency-Key", key)
	}
	for name, values := range k.header {
		h[name] = values
	}
	return h
}

// ErrUnanswered is a change that was asked for and given up before there was an answer: it may have been made. The same call with the same
// idempotency key tells.
var ErrUnanswered = errors.New("the authority was asked, and had not answered")

// once makes one try. A status other than 2xx is a *Problem.
func (c *Client) once(ctx context.Context, k call, header http.Header, body []byte) (*http.Response, error) {
	u := *c.base
	u.RawQuery = k.query.Encode()
	u.RawPath = Prefix + k.path // as escaped by path; Path is what it means
	u.Path, _ = url.PathUnescape(u.RawPath)
	req, err := http.NewRequestWithContext(ctx, k.method, u.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", k.method, k.path, err)
	}
	req.Header = header
	if body != nil {
		req.ContentLength = int64(len(body))
		req.Body = io.NopCloser(bytes.NewReader(body))
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	}
	resp, err := c.http.Do(req)
	if err != nil && k.method != http.MethodGet && ctx.Err() != nil {
		return nil, fmt.Errorf("%s %s: %w: %w", k.method, k.path, ErrUnanswered, bare(err))
	}
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", k.method, k.path, bare(err))
	}
	if c.clock != nil {
		if at, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
			c.clock(at)
		}
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("%s %s: read answer: %w", k.method, k.path, err)
	}
	return nil, problemOf(resp, text)
}

// again says whether a try that failed with err may be repeated, and when. Every call here is either a GET or carries
// an Idempotency-Key, so repeating is safe; whether it may help depends on the failure.
func (c *Client) again(ctx context.Context, err error, try int) (time.Duration, bool) {
	if c.noRetry || try >= len(retryAfter) || ctx.Err() != nil {
		return 0, false
	}
	if p, ok := errors.AsType[*Problem](err); ok {
		switch p.Status {
		case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			if p.RetryAfter > maxRetryAfter {
				return 0, false
			}
			return max(p.RetryAfter, retryAfter[try]), true
		}
		return 0, false
	}
	// A server that is not ours, or does not know us, stays so.
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return 0, false
	}
	if _, ok := errors.AsType[tls.AlertError](err); ok {
		return 0, false
	}
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		return 0, false
	}
	return retryAfter[try], true
}

// bare strips the method and URL that net/http puts before each error: they are ours and said already.
func bare(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err
	}
	return err
}

// path joins segments, each escaped, so that no name can leave its place.
func path(segments ...string) string {
	var b strings.Builder
	for _, s := range segments {
		b.WriteByte('/')
		b.WriteString(url.PathEscape(s))
	}
	return b.String()
}

func get(segments ...string) call  { return call{method: http.MethodGet, path: path(segments...)} }
func post(segments ...string) call { return call{method: http.MethodPost, path: path(segments...)} }

func (k call) with(in any) call {
	k.in = in
	return k
}

func (k call) where(q url.Values) call {
	k.query = q
	return k
}
