// Package recipe is the language that says how one consumer (libvirtd, nginx, PostgreSQL …) wants its certificates: which
// key, which usages and names, which files in which form, with which owner, mode and label, how it is told of them, and
// how it is seen that it serves them. A recipe is data, in YAML; the built-in ones are embedded, and an operator writes
// his own in the same language.
//
// The package reads and judges recipes, and resolves one for a host into a Plan in which nothing is left to choose. It
// does no I/O: what is true of the host comes in as Facts.
package recipe

import (
	"io/fs"
	"time"
)

// Recipe is how one consumer wants its certificates.
type Recipe struct {
	Name  string   `yaml:"name"`
	Title string   `yaml:"title"`           // one line, for lists
	About string   `yaml:"about"`           // paragraphs, for explain and the reference
	Traps []string `yaml:"traps,omitempty"` // what goes wrong in the field, and what the recipe does about it

	Parameters []Parameter `yaml:"parameters,omitempty"`
	Facts      []FactRule  `yaml:"facts,omitempty"`
	// Require are conditions without which nothing is placed.
	Require []Requirement `yaml:"require,omitempty"`

	// Certificates are what it holds; the first is the main one, and files mean it unless they name another. A recipe of which
	// every file holds trust alone needs none.
	Certificates []Certificate `yaml:"certificates,omitempty"`
	Trust        Trust         `yaml:"trust,omitempty"`
	Directories  []Directory   `yaml:"directories,omitempty"`
	Files        []File        `yaml:"files"`
	// User is who must be able to read what is placed: a user name, or name:group; empty is root.
	User string `yaml:"user,omitempty"`

	Checks []Step `yaml:"checks,omitempty"` // commands that must succeed after the files are there and before the reload
	Reload []Step `yaml:"reload,omitempty"` // the first whose condition holds is taken
	After  []Step `yaml:"after,omitempty"`  // run after the probe succeeded, each whose condition holds
	Probe  *Probe `yaml:"probe,omitempty"`  // nil: placed, not probed

	// Conflicts are recipes that must not be on the same host with the same files.
	Conflicts []string `yaml:"conflicts,omitempty"`
	// AllowList says that the consumer has a list of distinguished names; the line for it is shown in encoded order.
	AllowList bool `yaml:"allow_list,omitempty"`
	// Notes are said of a host where their condition holds: what was decided otherwise than asked, and why.
	Notes []Note `yaml:"notes,omitempty"`
}

// Note is a sentence for those hosts where its condition holds.
type Note struct {
	When string `yaml:"when,omitempty"`
	Text string `yaml:"text"`
}

// Parameter is a value that the operator may give. What it may be is its type; a text that could be read as another word
// of a command or another line of a file is refused for all types.
type Parameter struct {
	Name    string `yaml:"name"`
	Type    string `yaml:"type"` // path, address, host, port, user, group, name, unit, duration, bool, choice, algorithm, label
	About   string `yaml:"about"`
	Default string `yaml:"default,omitempty"` // may use facts and earlier parameters: ${fact.qemu.group}
	// Defaults come before Default: the first whose condition holds. Their conditions are of earlier parameters whose own
	// defaults use no facts.
	Defaults []DefaultRule `yaml:"defaults,omitempty"`
	Choices  []string      `yaml:"choices,omitempty"`
	Required bool          `yaml:"required,omitempty"`
	// Trusted marks a path that is used otherwise than to place a file: a program is given it, or it is read, connected to,
	// or names the process to signal. It must be marked, and a host holds it to what it accepts: see Reads.
	Trusted bool `yaml:"trusted,omitempty"`
}

// DefaultRule is a default where its condition holds.
type DefaultRule struct {
	When  string `yaml:"when"`
	Value string `yaml:"value"`
}

// FactRule is something that is to be found out on the host before the recipe is resolved. The first kind that is set is
// the rule's.
type FactRule struct {
	Name string `yaml:"name"` // "version": used in conditions and texts as fact.version
	// Command is run, and Pattern's first group in its output is the fact. A command that is not there leaves it empty.
	Command []string `yaml:"command,omitempty"`
	Pattern string   `yaml:"pattern,omitempty"`
	// Config is a file whose settings become facts: NAME.SETTING. Syntax is libvirt, postgresql, nginx or systemd.
	Config string `yaml:"config,omitempty"`
	Syntax string `yaml:"syntax,omitempty"`
	// Groups and Users name candidates; the first that the host has is the fact.
	Groups []string `yaml:"groups,omitempty"`
	Users  []string `yaml:"users,omitempty"`
	// Paths are candidates; the first that exists is the fact.
	Paths []string `yaml:"paths,omitempty"`
	// Home is a user whose home directory is the fact.
	Home  string `yaml:"home,omitempty"`
	About string `yaml:"about,omitempty"`
}

// Facts are what is true of a host: "version" → "9.0.0", "conf.cert_file" → "/opt/…". What is not known is absent.
type Facts map[string]string

// Requirement refuses a host whose facts or parameters do not fit, in words that say what would.
type Requirement struct {
	When    string `yaml:"when,omitempty"` // the requirement holds only where this does
	That    string `yaml:"that"`
	Message string `yaml:"message"`
}

// Certificate is a key and its certificate.
type Certificate struct {
	ID      string    `yaml:"id,omitempty"` // "main" where it is empty
	When    string    `yaml:"when,omitempty"`
	Key     []KeyRule `yaml:"key"`               // the first whose condition holds
	Profile string    `yaml:"profile"`           // of the authority
	Subject string    `yaml:"subject,omitempty"` // RFC 4514, with variables: O=${authority},CN=${host.name}
	// Names: ${host.names} and ${host.addresses} make as many names as there are; dns: and ip: as in a request.
	Names []string `yaml:"names,omitempty"`
	// Usages that this consumer must see in extKeyUsage: serverAuth, clientAuth.
	Usages []string `yaml:"usages,omitempty"`
	// Announce names a purpose: peers pin this certificate under it, so a new one is placed only when all of them hold it.
	// AnnounceWhen is the condition under which they do.
	Announce     string `yaml:"announce,omitempty"`
	AnnounceWhen string `yaml:"announce_when,omitempty"`
}

// KeyRule is which key a consumer takes.
type KeyRule struct {
	When      string `yaml:"when,omitempty"`
	Algorithm string `yaml:"algorithm"`          // rsa-3072, ecdsa-p256, ed25519; as keyfile.ParseAlgorithm reads it
	Encoding  string `yaml:"encoding,omitempty"` // pkcs8 (the default), traditional
	Pinned    bool   `yaml:"pinned,omitempty"`   // renewed with the same key, because others pinned it
	// KeyUsages that this consumer demands of a certificate with such a key, where it has a keyUsage: keyEncipherment.
	KeyUsages []string `yaml:"key_usages,omitempty"`
	Because   string   `yaml:"because,omitempty"`
}

// Trust is what of the pool's trust the consumer is given.
type Trust struct {
	// Purpose names the pool's trust set that is meant; general where it is empty.
	Purpose string `yaml:"purpose,omitempty" json:",omitempty"`
	// Intermediates puts the issuers into the trust file too, for consumers that do not take them from the peer's path.
	Intermediates bool `yaml:"intermediates,omitempty"`
	// CRLs are wanted, one for every issuer of the path.
	CRLs bool `yaml:"crls,omitempty"`
	// MaxCertificates and MaxBytes are what the consumer reads of one file of certificates; 0 is no limit of its own.
	MaxCertificates int `yaml:"max_certificates,omitempty"`
	MaxBytes        int `yaml:"max_bytes,omitempty"`
}

// Directory is made, and held to its owner, mode and label.
type Directory struct {
	Path  string `yaml:"path"`
	When  string `yaml:"when,omitempty"`
	Owner string `yaml:"owner,omitempty"`
	Group string `yaml:"group,omitempty"`
	Mode  string `yaml:"mode,omitempty"` // octal; 0755 where it is empty
	Label string `yaml:"label,omitempty"`
}

// File is one file that the consumer reads; or a directory of hash links, of one file for each certificate, or of NSS.
type File struct {
	Path string `yaml:"path"`
	When string `yaml:"when,omitempty"`
	// Of is the certificate that key, leaf and path are of; the first where it is empty.
	Of string `yaml:"of,omitempty"`
	// Content, in this order: key, leaf, path (the leaf and what is above it, without the root), issuers (path without
	// the leaf), path-reversed, anchors (trust), pinned (certificates to be trusted as they are), crls.
	Content []string `yaml:"content"`
	Format  string   `yaml:"format,omitempty"` // pem (the default), der, pkcs12, jks, hashdir, certdir, nss
	// Merge leaves in the file what is there and was not placed by the agent: a trust store with public CAs.
	Merge bool `yaml:"merge,omitempty"`
	// PasswordFile holds the password of a key store. It is the operator's file, or is made by the agent where it is not there.
	PasswordFile string `yaml:"password_file,omitempty"`
	Alias        string `yaml:"alias,omitempty"` // of the key's entry; in nss its nickname
	// TrustFlags are certutil's, of the anchors in an NSS database; CT,, where it is empty.
	TrustFlags string `yaml:"trust_flags,omitempty"`
	Owner      string `yaml:"owner,omitempty"` // root where it is empty
	Group      string `yaml:"group,omitempty"`
	Mode       string `yaml:"mode,omitempty"`  // octal; 0644, and 0600 where there is a key
	Label      string `yaml:"label,omitempty"` // SELinux
}

// Step is something that is done. Exactly one of Command, Signal and Action is set. A host may replace a step by name in
// its agent.yaml, where there is another init system.
type Step struct {
	Name    string   `yaml:"name"` // reload, restart, check …
	When    string   `yaml:"when,omitempty"`
	Command []string `yaml:"command,omitempty"` // an argument vector; each variable stays within its argument
	User    string   `yaml:"user,omitempty"`    // who runs the command; root where it is empty
	Signal  *Signal  `yaml:"signal,omitempty"`
	Action  string   `yaml:"action,omitempty"` // drop-revoked-clients, match-pair, set-haproxy-certificate, set-openldap-files: see the agent's loop
	// With is what the action needs. drop-revoked-clients: program (virt-admin), uri, server. set-haproxy-certificate: socket
	// and pid_file. match-pair: nothing.
	With    map[string]string `yaml:"with,omitempty"`
	Timeout Duration          `yaml:"timeout,omitempty"` // 30 s where it is 0
	// Interrupts says that connections are lost; such a step is taken only for new key material, and explain says so.
	Interrupts bool   `yaml:"interrupts,omitempty"`
	Because    string `yaml:"because,omitempty"`
}

// Signal is sent to the process whose number is the first line of a file, if the process has that name.
type Signal struct {
	PIDFile string `yaml:"pid_file"`
	Process string `yaml:"process"` // the command's name as the kernel has it: nginx
	Signal  string `yaml:"signal"`  // HUP, USR1 …
}

// Probe is how it is seen what the consumer serves.
type Probe struct {
	When    string `yaml:"when,omitempty"`    // else: placed, not probed
	Address string `yaml:"address,omitempty"` // HOST:PORT
	// StartTLS is postgres, smtp, imap, pop3, ldap, xmpp, vnc or nbd; empty or none is TLS from the beginning, and a Plan has it empty.
	StartTLS string `yaml:"starttls,omitempty"`
	// Accepts is how the consumer shows that it takes a client's certificate: http, libvirt, postgres or tls (it says nothing against
	// it), which is meant where it is empty, but for postgres after starttls: postgres. Proofs of revocation go by it.
	Accepts string `yaml:"accepts,omitempty"`
	// Names are checked one by one against what is served; the certificate's own where it is empty. CommonName accepts a
	// certificate without alternative names by its common name, as GnuTLS does.
	Names      []string `yaml:"names,omitempty"`
	CommonName bool     `yaml:"common_name,omitempty"`
	// ClientCertificate is the ID of the certificate that the probe shows; "" shows none.
	ClientCertificate string `yaml:"client_certificate,omitempty"`
	// AcceptRefusal: the consumer may refuse the probe after it has shown its certificate, since what the probe shows is
	// not a client's; what counts is what was seen until then.
	AcceptRefusal bool     `yaml:"accept_refusal,omitempty"`
	Command       []string `yaml:"command,omitempty"` // instead of a connection: succeeds when what was placed is in use
	// Action is instead of both: the agent finds the consumer's ports itself. look-at-qemu-vnc and look-at-libvirt-vnc look at
	// the display of every machine that runs; With is as in a Step.
	Action string            `yaml:"action,omitempty"`
	With   map[string]string `yaml:"with,omitempty"`
	// Else is another probe, where When does not hold.
	Else *Probe `yaml:"else,omitempty"`
	// Holds is, instead of a connection, a file in PEM that the reload makes: all anchors are in it when they are in use.
	Holds   string   `yaml:"holds,omitempty"`
	User    string   `yaml:"user,omitempty"`
	Timeout Duration `yaml:"timeout,omitempty"` // for the new certificate to be seen; 10 s where it is 0
}

// Duration is a time.Duration written as 30s, 5m, 12h, 90d.
type Duration time.Duration

// Host is whom a recipe is resolved for.
type Host struct {
	Name      string
	DNS       []string // the name and the other names
	IP        []string
	Authority string // the common name of the pool's root
}

// Plan is a recipe for one host, with every condition decided and every variable filled.
type Plan struct {
	Recipe       string
	Certificates []PlannedCertificate
	Trust        Trust
	Directories  []PlannedDirectory
	Files        []PlannedFile
	User, Group  string // who must be able to read it
	Checks       []Step // conditions and variables are resolved; nothing is left to choose
	Reload       *Step
	After        []Step
	Probe        *Probe
	AllowList    bool
	Notes        []string // what the operator should know of this host
}

// PlannedCertificate is a certificate to get.
type PlannedCertificate struct {
	ID        string
	Algorithm string
	Encoding  string
	Pinned    bool
	Profile   string
	Subject   string   // RFC 4514
	Names     []string // dns:NAME, ip:ADDRESS
	Usages    []string
	KeyUsages []string // of the key rule that was taken
	Announce  string   `json:",omitempty"` // the purpose under which peers pin it
}

// PlannedDirectory is a directory to be. Owner is never empty; an empty Group is the primary group of Owner.
type PlannedDirectory struct {
	Path, Owner, Group, Label string
	Mode                      fs.FileMode
}

// PlannedFile is a file to be. Owner is never empty; an empty Group is the primary group of Owner.
type PlannedFile struct {
	Path, Of            string
	Content             []string
	Format              string
	Merge               bool `json:",omitempty"`
	PasswordFile, Alias string
	TrustFlags          string `json:",omitempty"`
	Owner, Group, Label string
	Mode                fs.FileMode
}

// Shared reports whether what is in the file beside ours is somebody else's, and stays.
func (f PlannedFile) Shared() bool { return f.Merge || f.Format == "nss" }

// IsDirectory reports whether the path is that of a directory in which files are placed.
func (f PlannedFile) IsDirectory() bool { return isDirectory(f.Format) }

func isDirectory(format string) bool {
	return format == "hashdir" || format == "certdir" || format == "nss"
}

// TrustOnly reports whether the file holds nothing of a certificate of the host's own.
func (f PlannedFile) TrustOnly() bool { return !f.usesCertificate() }

// Secret reports whether the file holds a key.
func (f PlannedFile) Secret() bool {
	for _, c := range f.Content {
		if c == "key" {
			return true
		}
	}
	return false
}
