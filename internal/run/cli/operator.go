package cli

import (
	"context"
	"encoding/pem"
	"errors"
	"os"
	"strconv"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
)

type operatorCommands struct {
	Add     operatorAddCommand     `cmd:"" help:"Add an operator."`
	List    operatorListCommand    `cmd:"" help:"List the operators."`
	Remove  operatorRemoveCommand  `cmd:"" help:"End an operator's access at once and for good."`
	Disable operatorDisableCommand `cmd:"" help:"End an operator's access at once, until it is given again."`
	Enable  operatorEnableCommand  `cmd:"" help:"Give a disabled operator access again, with the tokens and identities that have not ended meanwhile."`
	Enrol   operatorEnrolCommand   `cmd:"" help:"Make a short-lived identity: key and certificate."`
	Whoami  operatorWhoamiCommand  `cmd:"" help:"Show who the node takes the caller for."`
}

type operatorAddCommand struct {
	Name string   `arg:"" name:"NAME" help:"The operator's name."`
	Role []string `required:"" enum:"admin,officer,operator,auditor" placeholder:"R" help:"${enum}. May be repeated."`
}

// Run adds an operator.
func (c *operatorAddCommand) Run(ctx context.Context, g *globals) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	o, err := api.CreateOperator(ctx, client.CreateOperatorRequest{Name: c.Name, Roles: c.Role})
	if err != nil {
		return err
	}
	return g.showOperator(o)
}

func (g *globals) showOperator(o *client.Operator) error {
	return g.show(o, field{"name", printable(o.Name)}, field{"kind", o.Kind}, field{"roles", strings.Join(o.Roles, ", ")}, field{"created", stamp(o.CreatedAt)},
		field{"state", map[bool]string{true: "disabled"}[o.Disabled]})
}

type operatorListCommand struct{}

// Run lists the operators.
func (c *operatorListCommand) Run(ctx context.Context, g *globals) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	return list(g, api.Operators(ctx), "NAME KIND ROLES CREATED STATE", func(o client.Operator) []string {
		state := "active"
		if o.Disabled {
			state = "disabled"
		}
		return []string{o.Name, orDash(o.Kind), strings.Join(o.Roles, ","), day(o.CreatedAt), state}
	})
}

type operatorRemoveCommand struct {
	Name string `arg:"" name:"NAME" help:"The operator."`
}

// Run ends an operator's access.
func (c *operatorRemoveCommand) Run(ctx context.Context, g *globals) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	if err := api.RemoveOperator(ctx, c.Name); err != nil {
		return err
	}
	g.say("%s has no access any more", c.Name)
	return nil
}

type operatorEnableCommand struct {
	Name string `arg:"" name:"NAME" help:"The operator."`
}

// Run gives access again.
func (c *operatorEnableCommand) Run(ctx context.Context, g *globals) error {
	return g.disable(ctx, c.Name, false)
}

type operatorDisableCommand struct {
	Name string `arg:"" name:"NAME" help:"The operator."`
}

// Run ends access until it is given again.
func (c *operatorDisableCommand) Run(ctx context.Context, g *globals) error {
	return g.disable(ctx, c.Name, true)
}

func (g *globals) disable(ctx context.Context, name string, disabled bool) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	o, err := api.ChangeOperator(ctx, name, client.ChangeOperatorRequest{Disabled: &disabled})
	if err != nil {
		return err
	}
	return g.showOperator(o)
}

type operatorEnrolCommand struct {
	Name string `arg:"" optional:"" name:"NAME" help:"For whom, as an admin; the caller himself, to renew, when not given."`
	Key  string `required:"" type:"path" placeholder:"F" help:"File for the new key; it must not exist."`
	Out  string `required:"" type:"path" placeholder:"F" help:"File for the certificate; it must not exist."`
}

// Run makes a key here and has its certificate issued.
func (c *operatorEnrolCommand) Run(ctx context.Context, g *globals) error {
	key, err := keyfile.Generate(keyfile.ECDSAP256, 0)
	if err != nil {
		return err
	}
	der, err := cert.CreateCSR(&cert.CSRTemplate{}, key)
	if err != nil {
		return err
	}
	text, err := keyfile.EncodePKCS8(key)
	if err != nil {
		return err
	}
	defer clear(text)
	if err := absent(c.Out); err != nil {
		return err
	}
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	if err := keyfile.WriteFile(c.Key, text, 0o600); err != nil {
		return err
	}
	identity, err := api.Enrol(ctx, c.Name, client.EnrolRequest{CSR: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))})
	if err != nil {
		return errors.Join(err, os.Remove(c.Key)) // a key without a certificate is of no use, and in the way of the next try
	}
	if err := g.write(c.Out, []byte(identity.PEM), 0o644); err != nil {
		return err
	}
	g.say("%s may call with --cert %s --cert-key %s until %s", identity.Operator, c.Out, c.Key, stamp(identity.NotAfter))
	return nil
}

type operatorWhoamiCommand struct{}

// Run shows the caller.
func (c *operatorWhoamiCommand) Run(ctx context.Context, g *globals) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	o, err := api.Caller(ctx)
	if err != nil {
		return err
	}
	return g.showOperator(o)
}

type tokenCommands struct {
	Add    tokenAddCommand    `cmd:"" help:"Make a token; its secret goes to --out, or to standard output, once."`
	List   tokenListCommand   `cmd:"" help:"List the tokens, without their secrets."`
	Revoke tokenRevokeCommand `cmd:"" help:"End a token at once."`
}

type tokenAddCommand struct {
	Operator string `arg:"" name:"OPERATOR" help:"Whose token."`
	Validity string `default:"90d" help:"How long."`
	Label    string `placeholder:"TEXT" help:"What it is for."`
	Out      string `type:"path" placeholder:"F" help:"File to write, mode 0600; it must not exist."`
}

// Run makes a token.
func (c *tokenAddCommand) Run(ctx context.Context, g *globals) error {
	if err := absent(c.Out); err != nil {
		return err
	}
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	t, err := api.CreateToken(ctx, c.Operator, client.CreateTokenRequest{Validity: c.Validity, Label: c.Label})
	if err != nil {
		return err
	}
	if err := g.write(c.Out, []byte(t.Secret+"\n"), 0o600); err != nil {
		return err
	}
	g.say("token %s of %s, until %s", t.ID, t.Operator, stamp(t.ExpiresAt))
	return nil
}

type tokenListCommand struct {
	Operator string `arg:"" optional:"" name:"OPERATOR" help:"Whose tokens; the caller's own when not given."`
}

// Run lists the tokens.
func (c *tokenListCommand) Run(ctx context.Context, g *globals) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	return list(g, api.Tokens(ctx, c.Operator), "ID OPERATOR CREATED EXPIRES USED LABEL", func(t client.Token) []string {
		return []string{t.ID, t.Operator, day(t.CreatedAt), day(t.ExpiresAt), day(t.LastUsed), orDash(t.Label)}
	})
}

type tokenRevokeCommand struct {
	ID string `arg:"" name:"ID" help:"The token's ID."`
}

// Run ends a token.
func (c *tokenRevokeCommand) Run(ctx context.Context, g *globals) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	if err := api.RevokeToken(ctx, c.ID); err != nil {
		return err
	}
	g.say("token %s is revoked", c.ID)
	return nil
}

type auditCommands struct {
	List       auditListCommand       `cmd:"" help:"Search the audit, oldest first."`
	Export     auditExportCommand     `cmd:"" help:"Write the audit, one JSON object a line."`
	Checkpoint auditCheckpointCommand `cmd:"" help:"Print a signed checkpoint: keep it elsewhere, and show it to verify."`
}

// auditFilter narrows what of the audit is shown.
type auditFilter struct {
	Actor  string `placeholder:"NAME" help:"Who did it."`
	Action string `placeholder:"A" help:"What was done."`
	Object string `placeholder:"ID" help:"To what."`
	Node   string `placeholder:"NODE" help:"On which node."`
	Since  string `placeholder:"TIME" help:"From this time (RFC 3339)."`
	Until  string `placeholder:"TIME" help:"Before this time (RFC 3339)."`
}

func (f *auditFilter) filter() (client.AuditFilter, error) {
	out := client.AuditFilter{Node: f.Node, Actor: f.Actor, Action: f.Action, Object: f.Object}
	for _, bound := range []struct {
		flag, text string
		to         *time.Time
	}{{"--since", f.Since, &out.Since}, {"--until", f.Until, &out.Until}} {
		if bound.text == "" {
			continue
		}
		at, err := time.Parse(time.RFC3339, bound.text)
		if err != nil {
			return out, usage("%s %q is not of the form 2027-02-28T16:24:41Z", bound.flag, bound.text)
		}
		*bound.to = at
	}
	return out, nil
}

type auditListCommand struct {
	auditFilter `embed:""`
}

// Run lists events.
func (c *auditListCommand) Run(ctx context.Context, g *globals) error {
	f, err := c.filter()
	if err != nil {
		return err
	}
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	return list(g, api.Audit(ctx, f), "TIME NODE SEQ ACTOR ACTION OBJECT", func(e client.AuditEvent) []string {
		return []string{stamp(e.Time), e.Node, itoa(e.Seq), orDash(e.Actor), e.Action, orDash(e.Object)}
	})
}

type auditExportCommand struct {
	auditFilter `embed:""`
	Out         string `type:"path" placeholder:"F" help:"File to write; standard output when not given."`
}

// Run exports events.
func (c *auditExportCommand) Run(ctx context.Context, g *globals) error {
	f, err := c.filter()
	if err != nil {
		return err
	}
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	return g.toFile(c.Out, 0o600, "exporting", func(w writer) error { return api.ExportAudit(ctx, w, f) })
}

type auditCheckpointCommand struct {
	Number int64  `arg:"" optional:"" name:"NUMBER" help:"Which; the newest when not given."`
	Sign   bool   `help:"Sign one now."`
	Out    string `type:"path" placeholder:"F" help:"File to write; standard output when not given."`
}

// Run prints a checkpoint.
func (c *auditCheckpointCommand) Run(ctx context.Context, g *globals) error {
	if c.Sign && c.Number != 0 {
		return usage("--sign and a number exclude each other")
	}
	if err := absent(c.Out); err != nil {
		return err
	}
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	var p *client.Checkpoint
	if c.Sign {
		p, err = api.SignCheckpoint(ctx)
	} else {
		p, err = api.Checkpoint(ctx, c.Number)
	}
	if err != nil {
		return err
	}
	if g.Output == "json" && c.Out == "" {
		return g.json(p)
	}
	return g.write(c.Out, []byte(p.Text), 0o644)
}

type settingsCommands struct {
	Show settingsShowCommand `cmd:"" help:"Print the settings."`
	Set  settingsSetCommand  `cmd:"" help:"Change settings."`
}

type settingsShowCommand struct{}

// Run prints the settings.
func (c *settingsShowCommand) Run(ctx context.Context, g *globals) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	s, err := api.Settings(ctx)
	if err != nil {
		return err
	}
	return g.showSettings(s)
}

func (g *globals) showSettings(s *client.Settings) error {
	if g.Output == "json" {
		return g.json(s.Document)
	}
	var fields []field
	for _, f := range s.Fields {
		fields = append(fields, field{f.Path, printable(orDash(f.Value))})
	}
	return g.show(s, fields...)
}

type settingsSetCommand struct {
	Set []string `arg:"" name:"NAME=VALUE" help:"Settings to change; a list is separated by commas."`
}

// Run changes settings: all that are named, or none.
func (c *settingsSetCommand) Run(ctx context.Context, g *globals) error {
	var in client.SettingsChange
	for _, s := range c.Set {
		name, value, ok := strings.Cut(s, "=")
		if !ok {
			return usage("%q is not of the form NAME=VALUE", s)
		}
		in.Set = append(in.Set, client.Setting{Path: name, Value: value})
	}
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	s, err := api.ChangeSettings(ctx, in, "")
	if err != nil {
		return err
	}
	return g.showSettings(s)
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }
