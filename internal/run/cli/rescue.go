package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"chancery/internal/store/keys"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/setup"
)

type rescueCommands struct {
	Clock rescueClockCommand `cmd:"" help:"Set the authority's time back to this machine's, after a clock was ahead."`
	Admin rescueAdminCommand `cmd:"" help:"Give an administrator a new identity in --dir, after the old one ended or was lost."`

	Expired  rescueExpiredCommand  `cmd:"" help:"Bring the authority back after its own certificates ended: issuers of identities, the node's, the administrator's, PostgreSQL's."`
	Node     rescueNodeCommand     `cmd:"" help:"Make a new node of --dir, after node.key was lost, with the recovery key; the database stays as it is."`
	Recovery rescueRecoveryCommand `cmd:"" help:"Make a new recovery key in the place of the old one, after that was lost or seen by others."`
}

type rescueClockCommand struct{}

// Run works on the machine of the node, because who is locked out cannot use its API; with SQLite the node must not run.
func (c *rescueClockCommand) Run(ctx context.Context, g *globals) error {
	if g.Dir == "" {
		return usage("rescue needs --dir D")
	}
	before, err := setup.RescueClock(ctx, datadir.Dir(g.Dir))
	if err != nil {
		return err
	}
	now := time.Now()
	if g.Output == "json" {
		return g.json(map[string]any{"before": before.UTC(), "after": now.UTC()})
	}
	was := "nothing yet"
	if !before.IsZero() {
		was = stamp(before)
	}
	_, err = fmt.Fprintf(g.Out, "the authority had seen %s; it has %s now\n", was, stamp(now))
	return err
}

type rescueAdminCommand struct{}

// Run works on the machine of the node as well.
func (c *rescueAdminCommand) Run(ctx context.Context, g *globals) error {
	if g.Dir == "" {
		return usage("rescue needs --dir D")
	}
	dir := datadir.Dir(g.Dir)
	name, err := setup.RescueAdmin(ctx, dir)
	if err != nil {
		return err
	}
	if g.Output == "json" {
		return g.json(map[string]any{"operator": name, "cert": dir.AdminCert(), "key": dir.AdminKey()})
	}
	_, err = fmt.Fprintf(g.Out, "%s has a new identity in %s\n", name, dir.AdminCert())
	return err
}

type rescueRecoveryCommand struct {
	Out            string `type:"path" placeholder:"F" help:"Where the sealed key goes; offline/recovery.age in --dir when not given."`
	PassphraseFile string `placeholder:"F|-" help:"Passphrase that seals it; one is made when not given."`
}

// Run works on the machine of the node too: what opens every key of the authority does not travel over its API.
func (c *rescueRecoveryCommand) Run(ctx context.Context, g *globals) error {
	if g.Dir == "" {
		return usage("rescue needs --dir D")
	}
	var passphrase []byte
	if c.PassphraseFile != "" {
		var err error
		if passphrase, err = g.secret(c.PassphraseFile, "passphrase"); err != nil {
			return err
		}
	}
	done := g.progress("wrapping every key")
	made, err := setup.ReplaceRecovery(ctx, datadir.Dir(g.Dir), c.Out, passphrase)
	done()
	if err != nil {
		return err
	}
	if g.Output == "json" {
		old := []string{}
		for _, r := range made.Old {
			old = append(old, r.PublicKey)
		}
		return g.json(map[string]any{"recipient": made.ID, "file": made.File, "passphrase_file": made.Passphrase, "keys": made.Keys, "replaced": old})
	}
	fmt.Fprintf(g.Out, "The new recovery key is in %s and opens all %d keys; the old one opens none of them any more.\n", made.File, made.Keys)
	if made.Passphrase != "" {
		fmt.Fprintf(g.Out, "Its passphrase is in %s. Take both off this machine, and keep them apart.\n", made.Passphrase)
	} else {
		fmt.Fprintln(g.Out, "Take it off this machine.")
	}
	fmt.Fprintln(g.Out, "\nNext: take a backup, since those from before open with the old key only. If others may have that and a backup, make new issuers.")
	return nil
}

type rescueExpiredCommand struct {
	DatabaseFile   string   `type:"path" placeholder:"F" help:"File (mode 0600) with another way into PostgreSQL for this once, where TLS lets nobody in: the URL of its Unix socket, on the machine of the primary."`
	RootFile       []string `type:"path" placeholder:"F" help:"The sealed key of a root that is offline, where only the issuer under it ended. May be repeated."`
	PassphraseFile string   `placeholder:"F|-" help:"Passphrase of the roots' keys, and of the one that is made where a root ended too."`
	Server         []string `placeholder:"NAME[/OTHER]" help:"Name of a member of the database, and after slashes its other names and addresses: it gets new certificates for PostgreSQL, etcd and Patroni, for you to put there. May be repeated."`
	ServerOut      string   `type:"path" placeholder:"DIR" help:"Where those go, with their keys and the roots; and NAME.tar, which has all of one member, for chancery-member-rescue install."`
	Pool           []string `placeholder:"NAME" help:"One more pool to give a new issuer, and a new root where that ended too. May be repeated."`
}

// Run works where the node is, for who runs it and for root: it opens the node's key, and no network lets anybody in for it.
func (c *rescueExpiredCommand) Run(ctx context.Context, g *globals) error {
	switch {
	case g.Dir == "":
		return usage("rescue needs --dir D")
	case (len(c.Server) > 0) != (c.ServerOut != ""):
		return usage("--server and --server-out go together")
	}
	o := setup.ExpiredOptions{Dir: datadir.Dir(g.Dir), DatabaseFile: c.DatabaseFile, Servers: c.Server, ServerDir: c.ServerOut, Pools: c.Pool}
	if c.PassphraseFile != "" {
		var err error
		if o.Passphrase, err = g.secret(c.PassphraseFile, "passphrase"); err != nil {
			return err
		}
	}
	for _, file := range c.RootFile {
		text, err := g.key(file)
		if err != nil {
			return err
		}
		if o.Passphrase == nil {
			if o.Passphrase, err = g.ask("Passphrase of " + file + ": "); err != nil {
				return err
			}
		}
		key, err := keys.OpenOffline(text, o.Passphrase)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		o.RootKeys = append(o.RootKeys, key)
	}
	done, err := setup.RescueExpired(ctx, o)
	if err != nil {
		return err
	}
	if g.Output == "json" {
		return g.json(done)
	}
	c.tell(g, done)
	return nil
}

func (c *rescueExpiredCommand) tell(g *globals, done *setup.Brought) {
	if len(done.Pools) == 0 {
		fmt.Fprintln(g.Out, "No issuer of the authority's own pools had ended.")
	}
	for _, name := range done.Pools {
		fmt.Fprintf(g.Out, "Pool %s has a new issuer.\n", name)
	}
	for _, name := range done.NewRoots {
		fmt.Fprintf(g.Out, "%s is a new root, since the one before had ended too.\n", name)
	}
	said := done.Administrator + " has a new identity."
	switch {
	case done.Administrator == "":
		said = "No administrator has his identity in this directory, and none got one (chancery rescue admin makes one here)."
	case done.Kept:
		said = done.Administrator + "'s identity is good, and stays."
	}
	written := append(done.Files, done.Offline...)
	if len(written) > 0 {
		said += " Written:"
	}
	fmt.Fprintln(g.Out, said)
	for _, file := range written {
		fmt.Fprintln(g.Out, " ", file)
	}
	if len(done.Offline) > 0 {
		fmt.Fprintln(g.Out, "Take what is in offline/ off this machine, and keep keys and passphrases apart.")
	}
	if done.AgentsJoin {
		fmt.Fprintln(g.Out, "Hosts knew the old root of identities: they join again (chancery host replace NAME), and keep what they hold meanwhile.")
	}
	if done.LoginLeft != "" {
		fmt.Fprintf(g.Out, "The node's own login at the database stays as it is: %s.\n", done.LoginLeft)
	}
	if len(done.Ended) > 0 {
		fmt.Fprintf(g.Out, "The issuers of these pools have ended too, and stay so until --pool names them: %s.\n", strings.Join(done.Ended, ", "))
	}
	if c.ServerOut != "" {
		fmt.Fprintf(g.Out, "Put what is in %s on the members of the database: NAME is for PostgreSQL's own port, NAME-client for its logins at the others, both with roots.crt; "+
			"NAME-peer is for etcd and Patroni, with peer-roots.crt. NAME.tar has all of this, for chancery-member-rescue install on a member of deploy/patroni. Then remove the directory.\n", c.ServerOut)
	}
	if len(done.Pools) == 0 && len(written) == 0 && !done.TLSRemoved {
		fmt.Fprintln(g.Out, "Nothing was written; a node that runs goes on as it is.")
		return
	}
	fmt.Fprintf(g.Out, "\nNext: chancery serve --dir %s; the node makes its TLS certificate when it starts and has none\n", g.Dir)
}

type rescueNodeCommand struct {
	RecoveryFile   string `required:"" type:"path" placeholder:"F" help:"The sealed recovery key that init wrote."`
	PassphraseFile string `placeholder:"F|-" help:"Its passphrase; asked for on a terminal when not given."`

	Lost         []string `placeholder:"NODE" help:"Another node of the authority whose key is lost as well, and which ends. All others are to be named; one that was seen lately is refused. May be repeated."`
	DatabaseFile string   `type:"path" placeholder:"F" help:"File (mode 0600) with the URL of the database, where --dir is lost too: it gets a node.yaml with that, for you to add addresses to."`
}

// Run works on the machine of the node; nobody but who has the recovery key can do this.
func (c *rescueNodeCommand) Run(ctx context.Context, g *globals) error {
	if g.Dir == "" {
		return usage("rescue needs --dir D")
	}
	r := restoreCommand{RecoveryFile: c.RecoveryFile, PassphraseFile: c.PassphraseFile}
	recovery, err := r.recovery(g)
	if err != nil {
		return err
	}
	done, err := setup.RescueNode(ctx, setup.NodeRescue{Dir: datadir.Dir(g.Dir), Recovery: recovery, Lost: c.Lost, DatabaseFile: c.DatabaseFile})
	if err != nil {
		return err
	}
	if g.Output == "json" {
		return g.json(done)
	}
	fmt.Fprintf(g.Out, "The node is %s now, and has a key of its own: %d keys of the authority are wrapped to it, and none to the old one.\n", done.Name, done.Keys)
	if done.Login != "" {
		fmt.Fprintf(g.Out, "Its login at the database is that of the old one still: %s. Before another node joins: chancery rescue expired --dir %s\n", done.Login, g.Dir)
	}
	if c.DatabaseFile != "" {
		fmt.Fprintf(g.Out, "%s has the database alone, and loopback addresses: say there where the node is (address, listen).\n", datadir.Dir(g.Dir).Config())
		fmt.Fprintf(g.Out, "No administrator's key is in %s: chancery rescue admin --dir %s makes one.\n", g.Dir, g.Dir)
	}
	_, err = fmt.Fprintf(g.Out, "\nNext: chancery serve --dir %s\n", g.Dir)
	return err
}
