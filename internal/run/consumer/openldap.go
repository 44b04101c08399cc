package consumer

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// OpenLDAPServer is a slapd of ours, and where its files are. It has no database: it answers for itself (the root DSE, RFC 4512
// section 5.1) and says who a client is (RFC 4532), which is what tests of certificates ask.
type OpenLDAPServer struct {
	Address    string   // host:port of ldap:// and StartTLS
	TLSAddress string   // host:port of ldaps://
	Home       string   // where its configuration and its socket are; its path must be short enough for a socket
	User       string   // who runs it; the caller where it is empty
	UID, GID   int      // who may manage cn=config over the socket
	More       []string // lines of cn=config: olcTLSVerifyClient: demand
}

// Socket is where ldapi:// listens.
func (s OpenLDAPServer) Socket() string { return s.Home + "/ldapi" }

// LDIF is what its configuration is made of, by Configure.
func (s OpenLDAPServer) LDIF() string {
	return fmt.Sprintf(`dn: cn=config
objectClass: olcGlobal
cn: config
olcPidFile: %[1]s/pid
olcArgsFile: %[1]s/args
%[2]s
dn: olcDatabase={-1}frontend,cn=config
objectClass: olcDatabaseConfig
objectClass: olcFrontendConfig
olcDatabase: {-1}frontend
olcAccess: to * by * read

dn: olcDatabase={0}config,cn=config
objectClass: olcDatabaseConfig
olcDatabase: {0}config
olcAccess: to * by dn.exact=gidNumber=%[4]d+uidNumber=%[3]d,cn=peercred,cn=external,cn=auth manage
`, s.Home, strings.Join(append(s.More, ""), "\n"), s.UID, s.GID)
}

// Configure is the command that reads LDIF from its input and makes the configuration, in the directory config of Home.
func (s OpenLDAPServer) Configure() []string {
	return []string{systemProgram("slapadd"), "-n", "0", "-F", s.Home + "/config", "-l", "/dev/stdin"}
}

// Program is a slapd that stays in the foreground and says of each connection what becomes of it.
func (s OpenLDAPServer) Program() Program {
	listen := fmt.Sprintf("ldap://%s ldaps://%s ldapi://%s", s.Address, s.TLSAddress, url.QueryEscape(s.Socket()))
	args := []string{"-d", "stats", "-F", s.Home + "/config", "-h", listen}
	if s.User != "" {
		args = append(args, "-u", s.User, "-g", s.User)
	}
	return Program{Path: systemProgram("slapd"), Args: args, Ready: Listening(s.Address)}
}

// OpenLDAP is a directory server of our own on loopback ports.
type OpenLDAP struct {
	*Process
	Server OpenLDAPServer
}

// StartOpenLDAP starts slapd as the caller in a new directory below dir, on free ports.
func StartOpenLDAP(ctx context.Context, dir string, more ...string) (*OpenLDAP, error) {
	home, err := os.MkdirTemp(dir, "ldap")
	if err != nil {
		return nil, err
	}
	s := OpenLDAPServer{Home: home, UID: os.Geteuid(), GID: os.Getegid(), More: more}
	for _, address := range []*string{&s.Address, &s.TLSAddress} {
		if *address, err = FreeAddress(); err != nil {
			return nil, err
		}
	}
	if err := os.Mkdir(filepath.Join(home, "config"), 0o700); err != nil {
		return nil, err
	}
	words := s.Configure()
	configure := exec.CommandContext(ctx, words[0], words[1:]...)
	configure.Stdin = strings.NewReader(s.LDIF())
	if out, err := configure.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("slapadd: %w: %s", err, out)
	}
	run := &OpenLDAP{Server: s}
	run.Process, err = Start(ctx, s.Program())
	return run, err
}
