package cli

import (
	"context"
	"fmt"
	"strings"

	"chancery/client"
)

type requestCommands struct {
	Submit   certIssueCommand       `cmd:"" help:"Submit a request for an officer to decide."`
	List     requestListCommand     `cmd:"" help:"List requests."`
	Show     requestShowCommand     `cmd:"" help:"Show a request."`
	Assign   requestAssignCommand   `cmd:"" help:"Assign a request to an officer."`
	Approve  requestApproveCommand  `cmd:"" help:"Approve a request, which issues its certificate."`
	Reject   requestRejectCommand   `cmd:"" help:"Reject a request."`
	Cancel   requestCancelCommand   `cmd:"" help:"Take an own request back."`
	Retrieve requestRetrieveCommand `cmd:"" help:"Fetch the certificate of an approved request."`
}

// BeforeApply makes the command shared with cert issue submit.
func (c *requestCommands) BeforeApply() error {
	c.Submit.Submit = true
	return nil
}

type requestListCommand struct {
	State     string `enum:"pending,issued,rejected,cancelled,all" default:"pending" help:"${enum}."`
	Requester string `placeholder:"NAME" help:"Who submitted it."`
	Assignee  string `placeholder:"NAME" help:"Whom it is assigned to."`
}

// Run lists, oldest first.
func (c *requestListCommand) Run(ctx context.Context, g *globals) error {
	f := client.RequestFilter{State: c.State, Requester: c.Requester, Assignee: c.Assignee}
	if f.State == "all" {
		f.State = ""
	}
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	return list(g, api.Requests(ctx, f), "ID STATE SUBMITTED REQUESTER ASSIGNEE PROFILE SUBJECT", func(r client.Request) []string {
		return []string{r.ID, r.State, day(r.SubmittedAt), r.Requester, orDash(r.Assignee), orDash(r.Profile), orDash(r.Subject)}
	})
}

// requestArg names a request.
type requestArg struct {
	ID string `arg:"" name:"ID" help:"The request."`
}

type requestShowCommand struct {
	requestArg `embed:""`
}

// Run shows a request.
func (c *requestShowCommand) Run(ctx context.Context, g *globals) error {
	return g.request(func(api *client.Client) (*client.Request, error) { return api.Request(ctx, c.ID) })
}

type requestAssignCommand struct {
	requestArg `embed:""`
	Officer    string `arg:"" name:"OFFICER" help:"The officer's name."`
}

// Run assigns a request.
func (c *requestAssignCommand) Run(ctx context.Context, g *globals) error {
	return g.request(func(api *client.Client) (*client.Request, error) { return api.Assign(ctx, c.ID, c.Officer) })
}

type requestApproveCommand struct {
	requestArg `embed:""`
}

// Run approves a request.
func (c *requestApproveCommand) Run(ctx context.Context, g *globals) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	result, err := api.Approve(ctx, c.ID)
	if err != nil {
		return err
	}
	if g.Output == "json" {
		return g.json(result)
	}
	if result.Certificate == nil {
		return fmt.Errorf("the node approved the request and gave no certificate")
	}
	g.say("approved; issued %s to %s, valid until %s", result.Certificate.Serial, printable(orDash(result.Certificate.Subject)), stamp(result.Certificate.NotAfter))
	return nil
}

type requestRejectCommand struct {
	requestArg `embed:""`
	Reason     string `required:"" placeholder:"TEXT" help:"Shown to the requester."`
}

// Run rejects a request.
func (c *requestRejectCommand) Run(ctx context.Context, g *globals) error {
	return g.request(func(api *client.Client) (*client.Request, error) {
		return api.Reject(ctx, c.ID, client.RejectRequest{Reason: c.Reason})
	})
}

type requestCancelCommand struct {
	requestArg `embed:""`
}

// Run takes a request back.
func (c *requestCancelCommand) Run(ctx context.Context, g *globals) error {
	return g.request(func(api *client.Client) (*client.Request, error) { return api.Cancel(ctx, c.ID) })
}

type requestRetrieveCommand struct {
	requestArg `embed:""`
	Out        string `type:"path" placeholder:"F" help:"File to write."`
	Chain      bool   `help:"Write the issuers below the root as well."`
}

// Run fetches the certificate.
func (c *requestRetrieveCommand) Run(ctx context.Context, g *globals) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	certificate, err := api.Retrieve(ctx, c.ID)
	if err != nil {
		return err
	}
	return g.issued(&client.IssueResult{Certificate: certificate}, c.Out, c.Chain, false)
}

// request does something with a request and shows it.
func (g *globals) request(act func(*client.Client) (*client.Request, error)) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	r, err := act(api)
	if err != nil {
		return err
	}
	return g.show(r,
		field{"id", r.ID}, field{"state", r.State}, field{"requester", printable(r.Requester)}, field{"profile", r.Profile}, field{"issuer", r.Issuer},
		field{"subject", printable(r.Subject)}, field{"names", printable(strings.Join(r.SAN, ", "))}, field{"submitted", stamp(r.SubmittedAt)},
		field{"assigned to", printable(r.Assignee)}, field{"decided by", printable(r.DecidedBy)}, field{"decided", stamp(r.DecidedAt)}, field{"reason", printable(r.Reason)}, field{"serial", r.Serial})
}
