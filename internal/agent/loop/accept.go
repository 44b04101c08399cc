package loop

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"chancery/internal/agent/place"
	"chancery/internal/agent/recipe"
	"chancery/internal/fault"
)

// DefaultPaths are where the built-in recipes place files, and where a system keeps those of its services. Directories in
// which a service finds its configuration are not among them: who may name the owner of a file there rules the service.
func DefaultPaths() []string {
	return []string{
		"/etc/apache2/tls", "/etc/chancery/placed", "/etc/haproxy/tls", "/etc/httpd/tls", "/etc/ldap/tls", "/etc/nginx/tls",
		"/etc/openldap/tls", "/etc/pki", "/etc/postgresql/tls", "/etc/rabbitmq/tls", "/etc/ssl", "/etc/stunnel/tls", "/opt/libvirt/etc/pki",
	}
}

// systemPaths are where every program of a host looks for whom to trust, and what TLS libraries read for their own
// configuration. They are accepted only where agent.yaml names them themselves: whoever rules one consumer's trust is not
// to rule the host's.
func systemPaths() []string {
	return []string{
		"/etc/ca-certificates", "/etc/pki/akmods", "/etc/pki/ca-trust", "/etc/pki/consumer", "/etc/pki/entitlement", "/etc/pki/fwupd",
		"/etc/pki/fwupd-metadata", "/etc/pki/java", "/etc/pki/nss-legacy", "/etc/pki/nssdb", "/etc/pki/product", "/etc/pki/product-default",
		"/etc/pki/rpm-gpg", "/etc/pki/swid", "/etc/pki/tls/cert.pem", "/etc/pki/tls/certs", "/etc/pki/tls/misc", "/etc/pki/tls/openssl.cnf",
		"/etc/pki/tls/openssl.d", "/etc/pki/trust", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem", "/etc/ssl/certs", "/etc/ssl/ct_log_list.cnf",
		"/etc/ssl/java", "/etc/ssl/openssl.cnf", "/etc/ssl/openssl.d", "/usr/lib/ssl", "/usr/local/share/ca-certificates",
		"/usr/share/ca-certificates", "/usr/share/pki",
	}
}

// DefaultReads are where the consumers of the built-in recipes keep what the agent reads, hands to their own programs, or
// connects to.
func DefaultReads() []string {
	return []string{
		"/etc/apache2", "/etc/haproxy", "/etc/httpd", "/etc/libvirt", "/etc/nginx", "/etc/postgresql", "/etc/stunnel", "/run",
		"/usr/sbin/apache2", "/usr/sbin/apache2ctl", "/usr/sbin/apachectl", "/usr/sbin/httpd", "/var/lib/haproxy", "/var/lib/pgsql",
		"/var/lib/postgresql", "/var/run",
	}
}

// DefaultServices are the units that the built-in recipes name themselves.
func DefaultServices() []string {
	return []string{
		"libvirtd.service", "qemu-nbd.service", "slapd.service", "systemd-journal-gatewayd.service", "systemd-journal-remote.service",
		"systemd-journal-upload.service", "virtproxyd.service",
	}
}

// placeable is what the layer of files holds each path against, with links resolved.
func (c *Config) placeable() place.Accept {
	return place.Accept{Prefixes: c.Paths, Except: systemPaths()}
}

// adopts reports whether a placement takes over files that are there and are not the agent's.
func (a *Agent) adopts(placement string) bool {
	return a.config.Adopt || a.adopt == AdoptAll || a.adopt != "" && a.adopt == placement
}

// below takes the root off a path that has it before it already, as a consumer's configuration may name one.
func below(path, root string) string {
	if rest, ok := strings.CutPrefix(path, filepath.Clean(root)+"/"); ok && root != "" {
		return "/" + rest
	}
	return path
}

// acceptsPaths refuses a plan with a path that this host does not accept, before a certificate is asked for.
func (c *Config) acceptsPaths(plan *recipe.Plan, root string) error {
	accept := place.Accept{Except: systemPaths()}
	for _, prefix := range c.Paths {
		accept.Prefixes = append(accept.Prefixes, below(prefix, root))
	}
	var outside []string
	var wrong []error
	for _, path := range everyPath(plan) {
		path = below(path, root)
		switch accepted, system := accept.Holds(path); {
		case accepted:
		case system != "":
			wrong = append(wrong, fault.New(fault.Denied, "%s is in %s, which decides what every program of this host trusts: a file of the consumer's own elsewhere "+
				"would pass, or %s named itself in paths in %s", path, system, system, ConfigFile).
				WithHint("write into %s: paths: [%s]", ConfigFile, strings.Join(append(slices.Clone(c.Paths), system), ", ")))
		case !slices.Contains(outside, path):
			outside = append(outside, path)
		}
	}
	if outside != nil {
		wrong = append(wrong, fault.New(fault.Denied, "this host accepts files under %s, and not %s", strings.Join(c.Paths, ", "), strings.Join(outside, ", ")).
			WithHint("name a prefix of it in paths in %s", ConfigFile))
	}
	if len(wrong) == 1 {
		return wrong[0]
	}
	return errors.Join(wrong...)
}

// everyPath are the paths of a plan in its order.
func everyPath(plan *recipe.Plan) []string {
	var paths []string
	for _, d := range plan.Directories {
		paths = append(paths, d.Path)
	}
	for _, f := range plan.Files {
		paths = append(paths, f.Path)
		if f.PasswordFile != "" {
			paths = append(paths, f.PasswordFile)
		}
	}
	return paths
}

// acceptsReads refuses paths that parameters name for a program to be run or given, to be read, connected to or signalled
// by, which this host does not accept: a configuration of somebody's choice is code that root runs, since a server's
// configuration names modules to load. It is asked before a fact is gathered, and again with the facts.
func (c *Config) acceptsReads(reads []recipe.Read, root string) error {
	var wrong []error
	for _, r := range reads {
		if err := c.acceptsRead(r, root); err != nil {
			wrong = append(wrong, fmt.Errorf("parameter %s: %w", r.Parameter, err))
		}
	}
	if len(wrong) == 1 {
		return wrong[0]
	}
	return errors.Join(wrong...)
}

// acceptsReads holds what a recipe's parameters name against what the host accepts.
func (w *work) acceptsReads(r *recipe.Recipe, facts recipe.Facts) error {
	reads, err := r.Reads(w.order.Parameters, facts)
	if err != nil {
		return err
	}
	return w.agent.config.acceptsReads(reads, w.agent.root)
}

func (c *Config) acceptsRead(r recipe.Read, root string) error {
	if r.Uses[0] == recipe.UseUnit {
		return c.acceptsService(r.Path)
	}
	inside := below(r.Path, root)
	listed := func(prefix string) bool {
		prefix = below(prefix, root)
		return inside == prefix || strings.HasPrefix(inside, prefix+"/")
	}
	// Where files are placed, nothing is read from: what is placed there may belong to an account of a parameter's choice.
	if !r.Own && !slices.ContainsFunc(c.Reads, listed) {
		return fault.New(fault.Denied, "this host does not accept %s as %s: what lies under %s would pass, as reads in %s may say otherwise",
			r.Path, says(r.Uses), strings.Join(c.Reads, ", "), ConfigFile)
	}
	owners := trustees{root: root}
	switch r.Uses[0] {
	case recipe.UsePIDFile:
		// No command is run with it and nothing of it is shown: its number gets a signal if the process there has the name
		// that the recipe says. So it may be the daemon's own file.
		return nil
	case recipe.UseConfig, recipe.UseSocket:
		owners.system = true
	}
	for _, path := range where(r, root) {
		if err := owners.trust(path); err != nil {
			return err
		}
	}
	return nil
}

// acceptsService refuses a unit that the host does not let a parameter name, be it the recipe's default: whoever says which
// unit is restarted could interrupt anything.
func (c *Config) acceptsService(unit string) error {
	if slices.ContainsFunc(c.Services, func(pattern string) bool { return recipe.MatchUnit(pattern, unit) }) {
		return nil
	}
	return fault.New(fault.Denied, "this host does not let a parameter name %s to be restarted: %s would pass, as services in %s may say otherwise",
		unit, cmp.Or(strings.Join(c.Services, ", "), "nothing"), ConfigFile).
		WithHint("write into %s: services: [%s]", ConfigFile, strings.Join(append(slices.Clone(c.Services), unit), ", "))
}

// where are the places that a path means: below the root, and, since a program that runs knows nothing of a root, the
// machine's own.
func where(r recipe.Read, root string) []string {
	if root == "" || root == "/" {
		return []string{r.Path}
	}
	real := root
	if resolved, err := filepath.EvalSymlinks(root); err == nil {
		real = resolved
	}
	paths := []string{filepath.Join(real, below(r.Path, root))}
	if runs := r.Uses[0] == recipe.UseProgram || r.Uses[0] == recipe.UseArgument; runs && below(r.Path, root) == r.Path {
		paths = append(paths, r.Path)
	}
	return paths
}

func says(uses []recipe.Use) string {
	var words []string
	for _, u := range uses {
		words = append(words, map[recipe.Use]string{recipe.UseProgram: "a program to run", recipe.UseArgument: "what a program is given",
			recipe.UseSocket: "a socket", recipe.UseConfig: "a configuration to read", recipe.UsePIDFile: "a pid file",
			recipe.UseUnit: "a service"}[u])
	}
	return strings.Join(words, ", ")
}

// systemAccounts are the numbers of accounts below which none is a person's: SYS_UID_MAX of login.defs, and one.
const systemAccounts = 1000

// maxHops bounds how many links a path may lead over.
const maxHops = 16

// trustees are who may have made what a path leads to.
type trustees struct {
	root   string // under it the agent's own user stands for root
	system bool   // a daemon's own account may own the file and directories above it, too
}

// trust follows a path from / on, over links as the kernel does, and refuses it where another than root, or a daemon's own
// account where that is enough, could have put there what is there, or could put another there. What does not exist is
// nobody's, and the directory in which it would be was looked at.
func (t trustees) trust(path string) error {
	rest := strings.Split(strings.TrimPrefix(filepath.Clean(path), "/"), "/")
	at, hops := "/", 0
	if err := t.component(path, at); err != nil {
		return err
	}
	for len(rest) > 0 {
		next := filepath.Join(at, rest[0])
		rest = rest[1:]
		err := t.component(path, next)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		target, err := os.Readlink(next)
		if err != nil { // no link
			at = next
			continue
		}
		if hops++; hops > maxHops {
			return fault.New(fault.Denied, "%s leads over more than %d links", path, maxHops)
		}
		if filepath.IsAbs(target) {
			at = "/"
		}
		rest = append(strings.Split(strings.Trim(filepath.Clean(target), "/"), "/"), rest...)
	}
	return nil
}

// component judges owner and mode of one component of a path.
func (t trustees) component(path, at string) error {
	st, err := os.Lstat(at)
	if err != nil {
		return err
	}
	link := st.Mode()&fs.ModeSymlink != 0
	owner := st.Sys().(*syscall.Stat_t).Uid
	daemons := t.system && !link && owner < systemAccounts
	if owner != 0 && !daemons && (t.root == "" || int(owner) != os.Geteuid()) {
		return fault.New(fault.Denied, "%s belongs to user %d, who could decide what is done on this host; %s is used only where root owns it and all above it",
			at, owner, path).WithHint("chown root %s; or name another file", at)
	}
	open := st.Mode().Perm() & 0o022
	if t.system {
		open &= 0o002 // its group is the daemon's own
	}
	if st.Mode().Type() == fs.ModeSocket {
		open = 0 // who may connect is not who could put another there
	}
	sticky := t.root != "" && st.IsDir() && st.Mode()&fs.ModeSticky != 0
	if link || open == 0 || sticky {
		return nil
	}
	return fault.New(fault.Denied, "%s has mode %04o, so others than its owner can write there; %s is used only where none can", at, st.Mode().Perm(), path).
		WithHint("chmod go-w %s; or name another file", at)
}
