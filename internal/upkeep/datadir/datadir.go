// Package datadir names the files of a data directory, and reads and writes the one that configures a node, node.yaml.
//
// A data directory belongs to one node and to one user, is mode 0700, and holds:
//
//	node.yaml               what concerns this node alone; see Config
//	node.key                the node's age identity, which opens its wraps (mode 0600)
//	node-tls.pem            the node's TLS key and certificate, made anew when it is missing (mode 0600)
//	chancery.db             the store, where it is SQLite; .lock beside it is held by the process that has it open
//	database-mark           where database_read is set: no write that the node acknowledged has a number above it
//	ca/identity-root.pem    the root of identities: what clients pin
//	ca/audit-key.pem        the public key of checkpoints and backups: keep a copy where the database's owner cannot change it
//	ca/recipients           version and hash of the newest list of key recipients that the node has seen; an older one is refused
//	admin/cert.pem, key.pem the credential of the commands that are run here with --dir (key mode 0600)
//	pkcs11/                 sockets of the helpers that sign in PKCS #11 tokens, and which PINs tokens refused (mode 0700)
//	offline/                what belongs off this machine: the sealed root keys, the recovery key, a copy of audit-key.pem
//
// What concerns the authority lives in its database and not here.
package datadir

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
	"chancery/internal/store/db"
	"chancery/internal/store/token"
	"github.com/goccy/go-yaml"
)

// Dir is the path of a data directory.
type Dir string

// The files of a data directory.
func (d Dir) Config() string       { return filepath.Join(string(d), "node.yaml") }
func (d Dir) NodeKey() string      { return filepath.Join(string(d), "node.key") }
func (d Dir) TLS() string          { return filepath.Join(string(d), "node-tls.pem") }
func (d Dir) Database() string     { return filepath.Join(string(d), "chancery.db") }
func (d Dir) DatabaseMark() string { return filepath.Join(string(d), "database-mark") }
func (d Dir) IdentityRoot() string { return filepath.Join(string(d), "ca", "identity-root.pem") }
func (d Dir) AuditKey() string     { return filepath.Join(string(d), "ca", "audit-key.pem") }
func (d Dir) Recipients() string   { return filepath.Join(string(d), "ca", "recipients") }
func (d Dir) AdminCert() string    { return filepath.Join(string(d), "admin", "cert.pem") }
func (d Dir) AdminKey() string     { return filepath.Join(string(d), "admin", "key.pem") }
func (d Dir) Offline() string      { return filepath.Join(string(d), "offline") }
func (d Dir) Tokens() string       { return filepath.Join(string(d), "pkcs11") }

// Config is what concerns one node alone. It is node.yaml, read strictly: an unknown field is an error.
type Config struct {
	// Name is this node's name: its audit chain, its leases and its log lines carry it. It never changes.
	Name string `yaml:"name"`

	// Address is where clients reach the API, https://HOST:PORT. The commands that are run with --dir use it, and the
	// node's TLS certificate names its host.
	Address string `yaml:"address"`

	// Listen holds the addresses the node listens on.
	Listen Listen `yaml:"listen"`

	// DatabaseFile is a file (mode 0600) that holds the database's URL, postgres://…, which has a password in it. Empty
	// means SQLite in the data directory.
	DatabaseFile string `yaml:"database_file,omitempty"`

	// ReadDatabaseFile is a file like DatabaseFile that names this node's local standby, which answers what only reads, also
	// while the primary is away. Empty means that all goes to the primary.
	ReadDatabaseFile string `yaml:"database_read,omitempty"`

	// FormerReadDatabaseFile is what ReadDatabaseFile was called before, and stands for it.
	FormerReadDatabaseFile string `yaml:"read_database_file,omitempty"`

	// TLSNames are further DNS names and IP addresses for the node's TLS certificate, beside Address, those of the API's
	// listen address, localhost and the loopback addresses.
	TLSNames []string `yaml:"tls_names,omitempty"`

	// TrustedProxies are the addresses (or prefixes, as 192.0.2.0/24) of proxies that end TLS in front of the node and
	// send the client's certificate in Client-Cert (RFC 9440). From anywhere else that header is refused.
	TrustedProxies []string `yaml:"trusted_proxies,omitempty"`

	// LogLevel is debug, info, warn or error; empty means info.
	LogLevel string `yaml:"log_level,omitempty"`

	// Expensive is how many expensive calls (backup, verify, exports) run at once; 0 means 2.
	Expensive int `yaml:"expensive,omitempty"`

	// Profiling adds /debug/pprof/ to the metrics listener: processor and memory profiles, for whoever can reach it. They
	// name functions and hold no secrets, but cost time.
	Profiling bool `yaml:"profiling,omitempty"`

	// PKCS11 says how this node reaches keys that lie in PKCS #11 tokens.
	PKCS11 PKCS11 `yaml:"pkcs11,omitempty"`

	// ShutdownGrace is how long calls in progress may take to end when the node stops; 0 means 20s.
	ShutdownGrace time.Duration `yaml:"shutdown_grace,omitempty"`
}

// Listen holds listen addresses, HOST:PORT each. Port 0 lets the system choose.
type Listen struct {
	// API is the https listener of the API. Empty means 127.0.0.1:8443.
	API string `yaml:"api,omitempty"`
	// Public is the plain http listener of CRLs, OCSP and CA certificates. Empty means 127.0.0.1:8080.
	Public string `yaml:"public,omitempty"`
	// Metrics is the plain http listener of /metrics, /healthz and /readyz. Empty means 127.0.0.1:9443.
	Metrics string `yaml:"metrics,omitempty"`
}

// PKCS11 is what a node needs to sign with keys in tokens. The keys themselves are known to the authority by their URIs.
type PKCS11 struct {
	// Helper is the path of chancery-pkcs11. Empty means beside the program, or where PATH has it.
	Helper string `yaml:"helper,omitempty"`
	// Tokens are those that this node reaches.
	Tokens []Token `yaml:"tokens,omitempty"`
}

// Token is a PKCS #11 token as one node reaches it.
type Token struct {
	// Token is its label.
	Token string `yaml:"token,omitempty"`
	// Serial is its serial number, which tells it from another of the same label.
	Serial string `yaml:"serial,omitempty"`
	// ReplicaOf is the serial number under which its keys are known to the authority, where it is a copy of another token.
	ReplicaOf string `yaml:"replica_of,omitempty"`
	// Module is the path of the PKCS #11 library. Root or the user of the node owns it, and nobody else may write to it.
	Module string `yaml:"module"`
	// PINFile is a file (mode 0600) with the PIN on one line; a relative path is in the data directory. A PIN that the token
	// refused is not tried again until the file holds another.
	PINFile string `yaml:"pin_file,omitempty"`
	// Sessions is how many signatures are made at once, at most 64; 0 means 8.
	Sessions int `yaml:"sessions,omitempty"`
}

// The listen addresses of a node whose configuration names none: loopback, so that nothing is open by accident.
const (
	DefaultAPI     = "127.0.0.1:8443"
	DefaultPublic  = "127.0.0.1:8080"
	DefaultMetrics = "127.0.0.1:9443"
)

// maxConfig is far above any real node.yaml, or file with a name beside it.
const maxConfig = 1 << 20

// Load reads the configuration of a data directory, fills in the defaults and validates it.
func (d Dir) Load() (*Config, error) {
	text, err := keyfile.ReadFile(d.Config(), maxConfig)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "%s is no data directory: it holds no node.yaml", string(d)).
			WithHint("chancery init --dir %s", string(d))
	}
	if err != nil {
		return nil, fmt.Errorf("read node configuration: %w", err)
	}
	return Parse(text)
}

// Parse reads a configuration.
func Parse(text []byte) (*Config, error) {
	var c Config
	if err := yaml.NewDecoder(bytes.NewReader(text), yaml.Strict()).Decode(&c); err != nil {
		return nil, fault.New(fault.Invalid, "node.yaml: %w", err)
	}
	c.fill()
	return &c, c.Validate()
}

// Filled is the configuration with the defaults in place of what it leaves out.
func (c Config) Filled() *Config {
	c.fill()
	return &c
}

func (c *Config) fill() {
	for _, f := range []struct {
		value    *string
		fallback string
	}{{&c.Listen.API, DefaultAPI}, {&c.Listen.Public, DefaultPublic}, {&c.Listen.Metrics, DefaultMetrics}, {&c.LogLevel, "info"}} {
		if *f.value == "" {
			*f.value = f.fallback
		}
	}
	if c.ReadDatabaseFile == "" {
		c.ReadDatabaseFile, c.FormerReadDatabaseFile = c.FormerReadDatabaseFile, ""
	}
	if c.Expensive == 0 {
		c.Expensive = 2
	}
	if c.ShutdownGrace == 0 {
		c.ShutdownGrace = 20 * time.Second
	}
}

// Create writes a new node.yaml; it refuses where there is one.
func (d Dir) Create(c Config) error {
	c.fill()
	if err := c.Validate(); err != nil {
		return err
	}
	text, err := yaml.Marshal(c)
	if err != nil {
		return fmt.Errorf("encode node configuration: %w", err)
	}
	head := "# What concerns this node alone. What concerns the authority: chancery settings show.\n"
	if err := keyfile.WriteBeside(d.Config(), append([]byte(head), text...), 0o644); err != nil {
		return fmt.Errorf("write node configuration: %w", err)
	}
	return nil
}

// Validate reports every problem with the path of its field.
func (c *Config) Validate() error {
	var problems []string
	add := func(path, format string, args ...any) {
		problems = append(problems, path+": "+fmt.Sprintf(format, args...))
	}
	if !validName(c.Name) {
		add("name", "%q is not a name of at most 63 letters, digits, hyphens and dots", c.Name)
	}
	if u, err := url.Parse(c.Address); err != nil || u.Scheme != "https" || u.Hostname() == "" || strings.Trim(u.Path, "/") != "" {
		add("address", "%q is not of the form https://HOST:PORT", c.Address)
	}
	for _, l := range [][2]string{
		{"listen.api", c.Listen.API}, {"listen.public", c.Listen.Public}, {"listen.metrics", c.Listen.Metrics},
	} {
		if _, port, err := net.SplitHostPort(l[1]); err != nil || port == "" {
			add(l[0], "%q is not of the form HOST:PORT", l[1])
		}
	}
	at := map[string]string{}
	for _, l := range [][2]string{
		{"listen.api", c.Listen.API}, {"listen.public", c.Listen.Public}, {"listen.metrics", c.Listen.Metrics},
	} {
		if _, port, _ := net.SplitHostPort(l[1]); port == "0" {
			continue // the system chooses
		}
		if other := at[l[1]]; other != "" {
			add(l[0], "%q is %s's too; each listens at an address of its own", l[1], other)
		}
		at[l[1]] = l[0]
	}
	if c.ReadDatabaseFile != "" && c.DatabaseFile == "" {
		add("database_read", "is set, and database_file is not: only PostgreSQL has standbys")
	}
	if c.FormerReadDatabaseFile != "" {
		add("read_database_file", "is the former name of database_read, and both are set")
	}
	for i, proxy := range c.TrustedProxies {
		if _, err := parsePrefix(proxy); err != nil {
			add(fmt.Sprintf("trusted_proxies[%d]", i), "%q is neither an IP address nor a prefix such as 192.0.2.0/24", proxy)
		}
	}
	switch c.LogLevel {
	case "debug", "info", "warn", "error":
	default:
		add("log_level", "%q is not one of debug, info, warn, error", c.LogLevel)
	}
	if c.Expensive < 0 || c.Expensive > 1000 {
		add("expensive", "%d is not between 1 and 1000", c.Expensive)
	}
	for i, t := range c.PKCS11.Tokens {
		path := fmt.Sprintf("pkcs11.tokens[%d].", i)
		if t.Token == "" && t.Serial == "" {
			add(path+"token", "is empty, and serial is too; one of them says which token is meant")
		}
		if !filepath.IsAbs(t.Module) {
			add(path+"module", "%q is not the absolute path of a PKCS #11 library", t.Module)
		}
		if t.Sessions < 0 || t.Sessions > token.MaxSessions {
			add(path+"sessions", "%d is not between 1 and %d", t.Sessions, token.MaxSessions)
		}
	}
	if h := c.PKCS11.Helper; h != "" && !filepath.IsAbs(h) {
		add("pkcs11.helper", "%q is not an absolute path", h)
	}
	if c.ShutdownGrace < 0 || c.ShutdownGrace > time.Hour {
		add("shutdown_grace", "%v is not between 0 and 1h", c.ShutdownGrace)
	}
	if len(problems) == 0 {
		return nil
	}
	return fault.New(fault.Invalid, "node.yaml: %s", strings.Join(problems, "; "))
}

// Shared is what nodes of one authority have alike as a rule, by its key: where one differs, that is worth a look. Addresses differ by
// nature and are left out.
func (c *Config) Shared() map[string]string {
	return map[string]string{
		"database_read": setOrNot(c.ReadDatabaseFile != ""), "trusted_proxies": strings.Join(c.TrustedProxies, ","), "expensive": strconv.Itoa(c.Expensive),
		"log_level": c.LogLevel, "profiling": strconv.FormatBool(c.Profiling), "shutdown_grace": c.ShutdownGrace.String(),
	}
}

func setOrNot(set bool) string {
	if set {
		return "set"
	}
	return "not set"
}

func validName(name string) bool {
	if name == "" || len(name) > 63 {
		return false
	}
	for _, r := range name {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '.' && r != '_' {
			return false
		}
	}
	return true
}

func parsePrefix(text string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(text); err == nil {
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	return netip.ParsePrefix(text)
}

// Proxies are TrustedProxies as prefixes.
func (c *Config) Proxies() []netip.Prefix {
	var prefixes []netip.Prefix
	for _, text := range c.TrustedProxies {
		if p, err := parsePrefix(text); err == nil { // Validate has refused what is not
			prefixes = append(prefixes, p.Masked())
		}
	}
	return prefixes
}

// TokenOptions say how this node reaches its tokens.
func (c *Config) TokenOptions(d Dir) token.Options {
	o := token.Options{Node: c.Name, Dir: d.Tokens(), Helper: c.PKCS11.Helper}
	for _, t := range c.PKCS11.Tokens {
		p := token.Place{Token: t.Token, Serial: t.Serial, ReplicaOf: t.ReplicaOf, Module: t.Module, PINFile: t.PINFile, Sessions: t.Sessions}
		if p.PINFile != "" && !filepath.IsAbs(p.PINFile) {
			p.PINFile = filepath.Join(string(d), p.PINFile)
		}
		o.Places = append(o.Places, p)
	}
	return o
}

// DatabaseURLs are where the node writes and reads; read is empty where both are one.
func (c *Config) DatabaseURLs(d Dir) (write, read string, err error) {
	if c.DatabaseFile == "" {
		path, err := filepath.Abs(d.Database())
		return "sqlite:" + path, "", err
	}
	if write, err = urlFromFile(d, c.DatabaseFile); err != nil {
		return "", "", err
	}
	if c.ReadDatabaseFile == "" {
		return write, "", nil
	}
	if read, err = urlFromFile(d, c.ReadDatabaseFile); err != nil {
		return "", "", err
	}
	return write, read, db.CheckReadURL(read)
}

// urlFromFile is lineFromFile with the node's own login.
func urlFromFile(d Dir, path string) (string, error) {
	line, err := lineFromFile(d, path)
	if err != nil {
		return "", err
	}
	return withLogin(d, line)
}

// Within is a path of node.yaml: a relative one is in the data directory.
func (d Dir) Within(path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(string(d), path)
}

// lineFromFile reads a URL from a file that only its owner may read; a relative path is in the data directory.
func lineFromFile(d Dir, path string) (string, error) {
	path = d.Within(path)
	text, err := keyfile.ReadSecret(path, keyfile.MaxSecret)
	if err != nil {
		return "", fmt.Errorf("read database URL: %w", err)
	}
	line := strings.TrimSpace(string(text))
	if line == "" || strings.ContainsAny(line, "\r\n") {
		return "", fault.New(fault.Invalid, "%s does not hold one line with the database's URL", path)
	}
	return line, nil
}
