package cli

import (
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"chancery/internal/agent/probe"
	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
	"chancery/internal/upkeep/examine"
	"chancery/internal/upkeep/finding"
)

type doctorCommands struct {
	Look     doctorCommand         `cmd:"" default:"withargs" help:"Look at the node, a host, a port or a file; it is what doctor does when no command is named."`
	Database doctorDatabaseCommand `cmd:"" help:"Look at the database: whether a failover would lose anything, how far the standbys are, its clock, limits and settings."`
	Scan     doctorScanCommand     `cmd:"" help:"List the certificates on a range of ports, or in the files of a directory."`
}

// trustFlag is what peers trust, for commands that judge what peers would see.
type trustFlag struct {
	Trust string `type:"path" placeholder:"FILE" help:"What the peers trust, in PEM; the authority's roots when not given and it can be asked, else the operating system's store."`
}

func (f trustFlag) read(g *globals) (*examine.Trust, error) {
	if f.Trust == "" {
		return nil, nil
	}
	text, err := g.readAll(f.Trust)
	if err != nil {
		return nil, err
	}
	return examine.ParseTrust(text, f.Trust)
}

type doctorCommand struct {
	What         string `arg:"" optional:"" name:"HOST|HOST:PORT|FILE" help:"A host of the authority, a port, or a file; the node and its authority when not given."`
	StartTLS     string `name:"starttls" placeholder:"P" help:"How TLS begins at the port: postgres, smtp, imap, pop3, ldap, xmpp, vnc, nbd, or none; guessed from the port when not given."`
	ServerName   string `name:"servername" placeholder:"N" help:"The name or address by which peers reach it, when that is another one."`
	trustFlag    `embed:""`
	Recipe       string        `placeholder:"NAME" help:"The recipe of the consumer, whose demands are then looked at as well."`
	ClientCert   string        `type:"path" placeholder:"F" help:"A certificate to show to the port."`
	ClientKey    string        `type:"path" placeholder:"F" help:"Its key."`
	Key          string        `type:"path" placeholder:"F" help:"The key that belongs to the certificate in FILE."`
	PasswordFile string        `placeholder:"F|-" help:"The password of a key store or an encrypted key."`
	User         string        `placeholder:"U[:G]" help:"The consumer's user, who must be able to read FILE."`
	State        string        `type:"path" env:"CHANCERY_STATE" placeholder:"S" help:"On HOST itself: the state directory of its agent, whose files are then looked at; /var/lib/chancery-agent when it is that host's."`
	Offline      bool          `help:"Fetch no CRL, no OCSP answer and no issuer from where the certificate says."`
	FetchPrivate bool          `help:"Fetch them from private addresses and from this machine, too, where the port has a public address."`
	Timeout      time.Duration `default:"10s" placeholder:"T" help:"How long a connection may take."`
	Strict       bool          `help:"Fail for warnings, too."`
}

// Run looks.
func (c *doctorCommand) Run(ctx context.Context, g *globals) error {
	if c.Timeout <= 0 || c.Timeout > 5*time.Minute {
		return usage("--timeout is more than nothing and at most 5m, and not %s", c.Timeout)
	}
	if c.What == "" {
		api, err := g.connect()
		if err != nil {
			return err
		}
		defer api.Close()
		return g.findings(api.Doctor(ctx), c.Strict)
	}
	_, err := os.Lstat(c.What)
	_, _, port := examine.Address(c.What)
	switch {
	case err == nil && !port, err == nil && strings.ContainsRune(c.What, '/'):
		return c.file(ctx, g)
	case port:
		return c.port(ctx, g)
	case strings.ContainsRune(c.What, '/') || strings.HasSuffix(c.What, ".pem") || strings.HasSuffix(c.What, ".crt") || strings.HasSuffix(c.What, ".key"):
		return err
	}
	return c.host(ctx, g)
}

func (c *doctorCommand) file(ctx context.Context, g *globals) error {
	o := examine.FileOptions{Key: c.Key, User: c.User, Recipe: c.Recipe, System: probe.System{AsRoot: os.Geteuid() == 0}}
	if c.ServerName != "" {
		o.Names = []string{c.ServerName}
	}
	var err error
	if o.Trust, err = c.read(g); err != nil {
		return err
	}
	if c.PasswordFile != "" {
		if o.Password, err = g.secret(c.PasswordFile, "password"); err != nil {
			return err
		}
	}
	found, err := examine.File(ctx, c.What, o, time.Now())
	if err != nil {
		return err
	}
	return g.told(found, c.Strict)
}

func (c *doctorCommand) port(ctx context.Context, g *globals) error {
	o, err := c.portOptions(g)
	if err != nil {
		return err
	}
	before := g.authorityOf(o)
	defer before.end()
	end := g.progress("looking at " + printable(c.What))
	found, _, err := examine.Port(ctx, c.What, *o, time.Now())
	end()
	if err != nil {
		return err
	}
	return g.told(slices.Concat(before.found, found), c.Strict)
}

func (c *doctorCommand) portOptions(g *globals) (*examine.PortOptions, error) {
	protocols := []string{"", "none", "postgres", "smtp", "imap", "pop3", "ldap", "xmpp", "vnc", "nbd"}
	if !slices.Contains(protocols, c.StartTLS) {
		return nil, usage("--starttls %s: one of %s is wanted", c.StartTLS, strings.Join(protocols[1:], ", "))
	}
	o := &examine.PortOptions{StartTLS: c.StartTLS, ServerName: c.ServerName, Recipe: c.Recipe, Timeout: c.Timeout, Offline: c.Offline, FetchPrivate: c.FetchPrivate}
	var err error
	if o.Trust, err = c.read(g); err != nil {
		return nil, err
	}
	if (c.ClientCert == "") != (c.ClientKey == "") {
		return nil, usage("--client-cert and --client-key go together")
	}
	if c.ClientCert == "" {
		return o, nil
	}
	o.Client, err = g.clientPair(c.ClientCert, c.ClientKey)
	return o, err
}

// clientPair reads a certificate with what is above it, and its key.
func (g *globals) clientPair(certificate, key string) (*tls.Certificate, error) {
	text, err := g.readAll(certificate)
	if err != nil {
		return nil, err
	}
	path, err := keyfile.ParseCertificates(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", certificate, err)
	}
	if text, err = g.key(key); err != nil {
		return nil, err
	}
	defer clear(text)
	signer, err := keyfile.ParsePrivateKey(text, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	if err := keyfile.CheckPair(signer.Public(), path[0]); err != nil {
		return nil, err
	}
	pair := &tls.Certificate{PrivateKey: signer, Leaf: path[0]}
	for _, one := range path {
		pair.Certificate = append(pair.Certificate, one.Raw)
	}
	return pair, nil
}

// asked is an authority that is asked beside a look at a port, or why it is not.
type asked struct {
	found []finding.Finding
	end   func()
}

// authorityOf lets the authority be asked, where one is named. A port is looked at without one, too: that it cannot be asked is a
// finding.
func (g *globals) authorityOf(o *examine.PortOptions) asked {
	if g.Dir == "" && g.Address == "" {
		return asked{end: func() {}}
	}
	api, err := g.connect()
	if err != nil {
		return asked{end: func() {}, found: []finding.Finding{examine.Unreachable(err)}}
	}
	o.Authority = &examine.Authority{API: api}
	return asked{end: api.Close}
}

func (c *doctorCommand) host(ctx context.Context, g *globals) error {
	if g.Dir == "" && g.Address == "" {
		return fault.New(fault.NotFound, "%s is no file and not HOST:PORT, and as a host of an authority it is not known without one", printable(c.What)).
			WithHint("chancery doctor %s:443, or with a connection: chancery --dir D doctor %s", printable(c.What), printable(c.What))
	}
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	o := examine.HostOptions{State: c.State, Timeout: c.Timeout, Offline: c.Offline, FetchPrivate: c.FetchPrivate, System: probe.System{AsRoot: os.Geteuid() == 0}}
	if o.Trust, err = c.read(g); err != nil {
		return err
	}
	if o.State == "" {
		o.State, o.Guessed = "/var/lib/chancery-agent", true
	}
	end := g.progress("looking at " + printable(c.What))
	found, err := examine.Host(ctx, &examine.Authority{API: api}, c.What, o, time.Now())
	end()
	if err != nil {
		return err
	}
	return g.told(found, c.Strict)
}

// told prints what was found: what is wrong first, each with what to do; and fails where something is.
func (g *globals) told(found []finding.Finding, strict bool) error {
	if g.Output == "json" {
		return g.findings(wire(finding.Of(found)), strict)
	}
	order := []finding.Level{finding.Error, finding.Warning, finding.OK}
	sorted := slices.Clone(found)
	slices.SortStableFunc(sorted, func(a, b finding.Finding) int { return slices.Index(order, a.Level) - slices.Index(order, b.Level) })
	object := ""
	width := 0
	for _, f := range sorted {
		width = max(width, len(f.Check))
	}
	for i, f := range sorted {
		if f.Object != object && f.Object != "" || i == 0 {
			object = f.Object
			fmt.Fprintln(g.Out, printable(object))
		}
		g.tellOne(f, width)
	}
	errs, warnings := 0, 0
	for _, f := range found {
		switch f.Level {
		case finding.Error:
			errs++
		case finding.Warning:
			warnings++
		}
	}
	return judged(len(found), errs, warnings, strict)
}

// page is how wide text is written.
const page = 118

func (g *globals) tellOne(f finding.Finding, width int) {
	level := strings.ToUpper(string(f.Level))
	head := fmt.Sprintf("  %-7s  %-*s  ", level, width, printable(f.Check))
	g.wrapped(head, f.Message)
	for _, more := range []field{{"seen", f.Seen}, {"do", f.Do}, {"run", f.Hint}} {
		if more.value == "" {
			continue
		}
		lead := fmt.Sprintf("%*s%-5s ", 11, "", more.name+":")
		if more.name == "run" { // to be copied, so it is not broken
			fmt.Fprintln(g.Out, lead+printable(more.value))
			continue
		}
		g.wrapped(lead, more.value)
	}
}

// wrapped writes a text behind a lead, its further lines below it.
func (g *globals) wrapped(lead, text string) {
	indent := strings.Repeat(" ", min(len(lead), 40))
	line := lead
	empty := true
	for word := range strings.FieldsSeq(printable(text)) {
		if !empty && len([]rune(line))+1+len([]rune(word)) > page {
			fmt.Fprintln(g.Out, line)
			line, empty = indent, true
		}
		if !empty {
			line += " "
		}
		line, empty = line+word, false
	}
	fmt.Fprintln(g.Out, line)
}

// judged is how a command ends that found so much.
func judged(looked, errs, warnings int, strict bool) error {
	switch {
	case looked == 0:
		return fault.New(fault.Internal, "nothing was looked at")
	case errs > 0:
		return fault.New(fault.Conflict, "%d of %d findings are errors", errs, looked)
	case strict && warnings > 0:
		return fault.New(fault.Conflict, "%d of %d findings are warnings, which count by --strict", warnings, looked)
	}
	return nil
}
