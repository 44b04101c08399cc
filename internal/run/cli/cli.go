// Package cli holds the commands.
//
// Most are clients of a node's API: they find its address, the pinned identity root and the administrator's credential in
// a data directory (--dir, or CHANCERY_DIR), or are given them. Some work locally: init, serve, restore, key, demo, bench
// and cert show.
//
// What a command makes goes to standard output or to the file named by --out, talk goes to standard error. The exit code
// is 0 when done, 1 when refused or failed, 2 when the command line is wrong.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"chancery/client"
	"chancery/internal/agent/probe"
	"chancery/internal/fault"
)

// version is set by the linker.
var version = "unknown"

// Streams are what a command reads and writes.
type Streams struct {
	In  io.Reader
	Out io.Writer
	Err io.Writer
}

// The exit codes.
const (
	exitDone    = 0
	exitRefused = 1
	exitUsage   = 2
)

// globals are the flags of every command.
type globals struct {
	Dir          string `short:"D" env:"CHANCERY_DIR" type:"path" default:"" placeholder:"D" help:"Data directory: holds the node's address and the administrator's credential."`
	Address      string `env:"CHANCERY_ADDRESS" placeholder:"https://HOST:PORT" help:"Address of a node, instead of the one in --dir."`
	IdentityRoot string `type:"path" placeholder:"F" help:"The identity root to trust, instead of the one in --dir."`
	Cert         string `type:"path" placeholder:"F" help:"Identity certificate of the caller, instead of the one in --dir."`
	CertKey      string `type:"path" placeholder:"F" help:"Its key."`

	TokenFile string `env:"CHANCERY_TOKEN_FILE" placeholder:"F|-" help:"File that holds the caller's token, instead of a certificate; - for standard input."`
	Output    string `short:"o" enum:"text,json,csv" default:"text" help:"Form of what is printed: text or json; csv of doctor scan."`

	Streams `kong:"-"`
	ctx     context.Context // of the command; kong gives it to Run, and connect needs it too

	recoveryWork int // of init, as setup.Options has it: nothing but a test sets it
}

// commands is the whole command line, on one screen.
type commands struct {
	globals

	Init  initCommand  `cmd:"" help:"Make an authority: roots, issuers, the first administrator."`
	Serve serveCommand `cmd:"" help:"Run a node."`
	Demo  demoCommand  `cmd:"" help:"Play the story of a throw-away authority, three hosts, and what they serve."`

	Pool    poolCommands    `cmd:"" help:"Pools: hosts that trust each other, each with a root and an issuer of its own."`
	Host    hostCommands    `cmd:"" help:"Hosts: machines that join, and what each shall hold."`
	Rollout rolloutCommands `cmd:"" help:"Rollouts: staged changes over the hosts of a pool."`
	Profile profileCommands `cmd:"" help:"Profiles: what may be issued."`
	Recipe  recipeCommands  `cmd:"" help:"Recipes: how one consumer wants its certificates."`
	Key     keyCommands     `cmd:"" help:"Private keys, made and looked at locally."`
	Cert    certCommands    `cmd:"" help:"Certificates: issue, show, list, renew, re-key, revoke, hold."`
	Request requestCommands `cmd:"" help:"Requests that wait for an officer."`
	Issuer  issuerCommands  `cmd:"" help:"Issuers: CA certificates and their keys."`
	CRL     crlCommands     `cmd:"" name:"crl" help:"Certificate revocation lists."`

	Clone    cloneCommands    `cmd:"" help:"Nodes of the authority: invite, join, approve, look, promote, leave."`
	Agent    agentCommands    `cmd:"" help:"The agent of a host: join, run, look, place by hand."`
	Operator operatorCommands `cmd:"" help:"Operators and their identities."`
	Token    tokenCommands    `cmd:"" help:"Operators' tokens."`
	Audit    auditCommands    `cmd:"" help:"The audit: who did what."`
	Settings settingsCommands `cmd:"" help:"The authority's configuration."`

	DemoConsumer demoConsumerCommand `cmd:"" hidden:"" help:"Stand in for a consumer of the demo, or tell one."`

	Backup  backupCommands `cmd:"" help:"Backups: the whole authority, or its signing keys."`
	Restore restoreCommand `cmd:"" help:"Make an authority anew from a backup."`
	Rescue  rescueCommands `cmd:"" help:"Mend, where the node is, what locks an administrator out."`
	Migrate migrateCommand `cmd:"" help:"Move the authority from SQLite to PostgreSQL."`
	Import  importCommand  `cmd:"" help:"Bring in a CA that exists already, with what it issued and revoked."`
	Doctor  doctorCommands `cmd:"" help:"Say what is wrong, and the command that mends it."`
	Status  statusCommand  `cmd:"" help:"Show how the authority does."`
	Verify  verifyCommand  `cmd:"" help:"Check the whole store as an outsider would."`
	Bench   benchCommand   `cmd:"" help:"Measure the budgets against peers and bare limits."`

	Version versionCommand `cmd:"" help:"Print the version."`
}

// Run runs the command line and returns its exit code.
func Run(ctx context.Context, args []string, streams Streams) int {
	// An agent starts itself for each file that it tries as another user: that takes less than the grammar of all commands.
	if len(args) == 6 && args[0] == "agent" && args[1] == "readable" {
		return probe.ReadableMain(args[2:])
	}
	return new(commands).run(ctx, args, streams)
}

func (c *commands) run(ctx context.Context, args []string, streams Streams) int {
	c.Streams, c.ctx = streams, ctx
	exited := -1
	parser, err := newParser(c, args,
		kong.Writers(streams.Out, streams.Err),
		kong.Exit(func(code int) { exited = code }),
		kong.UsageOnError(),
		kong.BindTo(ctx, (*context.Context)(nil)),
	)
	if err != nil {
		fmt.Fprintln(streams.Err, "chancery:", err)
		return exitUsage
	}
	parsed, err := parser.Parse(joinConstraints(args))
	if exited >= 0 { // --help was printed
		return exited
	}
	if err != nil {
		fmt.Fprintln(streams.Err, "chancery:", err)
		if signed := slices.IndexFunc(args, signedID.MatchString); signed >= 0 && commandOf(err) == "chancery key id" {
			fmt.Fprintf(streams.Err, "  hint: an identifier that begins with a minus stands after --: chancery key id -- %s\n", args[signed])
		}
		fmt.Fprintf(streams.Err, "  %s --help shows what passes\n", commandOf(err))
		return exitUsage
	}
	if c.Output == "csv" && !strings.HasPrefix(parsed.Command(), "doctor scan") {
		fmt.Fprintln(streams.Err, "chancery: -o csv: only doctor scan prints that; text and json pass")
		return exitUsage
	}
	if err := parsed.Run(&c.globals); err != nil {
		c.report(err)
		if _, wrong := errors.AsType[*usageError](err); wrong {
			return exitUsage
		}
		return exitRefused
	}
	return exitDone
}

// signedID is a key's identifier as CS.cfg of RHCS has it, where a flag is looked for.
var signedID = regexp.MustCompile(`^-[0-9a-fA-F]{2,}$`)

// joinConstraints lets a value of --name-constraint begin with the minus that excludes a name: elsewhere a word that begins
// with one is a flag.
func joinConstraints(args []string) []string {
	var joined []string
	for i := 0; i < len(args); i++ {
		if args[i] == "--name-constraint" && i+1 < len(args) {
			joined = append(joined, args[i]+"="+args[i+1])
			i++
			continue
		}
		joined = append(joined, args[i])
	}
	return joined
}

// commandOf is the command, as far as the parser understood it.
func commandOf(err error) string {
	name := "chancery"
	if wrong, ok := errors.AsType[*kong.ParseError](err); ok && wrong.Context != nil {
		for _, step := range wrong.Context.Path {
			if step.Command != nil {
				name += " " + step.Command.Name
			}
		}
	}
	return name
}

// newParser is the parser of the command line: of the whole of it, or, where args begin with a command's name, of that one. To
// read all hundred and more by reflection took a command longer than everything else it does before its call.
func newParser(c *commands, args []string, options ...kong.Option) (*kong.Kong, error) {
	options = append([]kong.Option{
		kong.Name("chancery"),
		kong.Description("A private PKI for fleets of hosts."),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true, WrapUpperBound: 110}),
		kong.Vars{"reasons": reasons, "reason_numbers": reasonNumbers},
	}, options...)
	if one := c.only(args); one != nil {
		return kong.New(&c.globals, append(options, one)...)
	}
	return kong.New(c, options...)
}

// only is the command that args begin with; nil where they begin with something else: a flag, a mistyped name, nothing, a hidden
// command. The whole line is read then.
func (c *commands) only(args []string) kong.Option {
	if len(args) == 0 {
		return nil
	}
	all := reflect.ValueOf(c).Elem()
	for field := range all.Type().Fields() {
		name := strings.ToLower(field.Name)
		_, command := field.Tag.Lookup("cmd")
		_, hidden := field.Tag.Lookup("hidden")
		if command && !hidden && name == args[0] {
			return kong.DynamicCommand(name, field.Tag.Get("help"), "", all.FieldByIndex(field.Index).Addr().Interface())
		}
	}
	return nil
}

// Grammar is the command line as data, and a parser that runs nothing: the documents are held against it.
func Grammar() (*kong.Kong, error) { return newParser(&commands{}, nil, kong.Exit(func(int) {})) }

// usageError is a command line that no parser can refuse: flags that exclude each other, say.
type usageError struct{ message string }

func (e *usageError) Error() string { return e.message }

func usage(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// report prints why a command failed, and the hint if there is one; as JSON where the operator asked for JSON.
func (g *globals) report(err error) {
	hint := ""
	if f, ok := errors.AsType[*fault.Error](err); ok {
		hint = f.Hint
	}
	problem, ofNode := errors.AsType[*client.Problem](err)
	if ofNode {
		hint = problem.Hint
	}
	switch {
	case errors.Is(err, context.Canceled) && errors.Is(err, client.ErrUnanswered):
		err = errors.New("interrupted before the authority answered: what it was asked for may have been done")
		hint = "look before it is asked for again, which would be another call: chancery audit list, chancery cert list"
	case errors.Is(err, context.Canceled):
		err = errors.New("interrupted")
	}
	if g.Output == "json" {
		if !ofNode {
			problem = &client.Problem{Type: client.ProblemPrefix + string(fault.KindOf(err)), Title: "the command failed", Detail: err.Error(), Hint: hint}
		}
		_ = json.NewEncoder(g.Err).Encode(problem)
		return
	}
	fmt.Fprintln(g.Err, "chancery:", printableLines(err.Error()))
	if hint != "" {
		fmt.Fprintln(g.Err, "  hint:", printable(hint))
	}
}

// connect opens a client to the node that the flags name, and renews the caller's identity where it is due.
func (g *globals) connect() (*client.Client, error) {
	o, certFile, keyFile, err := g.clientOptions()
	if err != nil {
		return nil, err
	}
	api, err := client.New(*o)
	if err == nil && certFile != "" {
		g.renewIdentity(g.ctx, api, certFile, keyFile, time.Now())
	}
	return api, err
}

func countLines(text string) string {
	if text == "" {
		return "nothing"
	}
	return fmt.Sprintf("%d lines", strings.Count(text, "\n")+1)
}

type versionCommand struct{}

// Run prints the version.
func (versionCommand) Run(g *globals) error {
	if g.Output == "json" {
		return json.NewEncoder(g.Out).Encode(map[string]string{"version": version})
	}
	_, err := fmt.Fprintln(g.Out, "chancery", version)
	return err
}
