package api

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"io"

	"chancery/client"
	"chancery/internal/store/audit"
)

// EventFilter selects events of the audit.
type EventFilter struct {
	Node   string `query:"node" maxLength:"128" doc:"one node's chain"`
	Actor  string `query:"actor" maxLength:"512"`
	Action string `query:"action" maxLength:"512" doc:"whole, or a prefix that ends in a dot"`
	Object string `query:"object" maxLength:"512"`
	Since  string `query:"since" maxLength:"40" doc:"RFC 3339"`
	Until  string `query:"until" maxLength:"40" doc:"RFC 3339"`
	Newest bool   `query:"newest" doc:"newest first"`
}

func (f *EventFilter) filter() (audit.Filter, error) {
	since, err := moment(f.Since, "since")
	if err != nil {
		return audit.Filter{}, err
	}
	until, err := moment(f.Until, "until")
	return audit.Filter{
		Node: f.Node, Actor: f.Actor, Action: f.Action, Object: f.Object, Since: since, Until: until, Newest: f.Newest,
	}, err
}

type auditSearch struct {
	Paged
	EventFilter
}

func (s *Server) searchAudit(ctx context.Context, in *auditSearch) (*out[client.Page[client.AuditEvent]], error) {
	f, err := in.filter()
	if err != nil {
		return nil, err
	}
	found, err := s.Audit.Search(ctx, f, in.After, in.Limit)
	if err != nil {
		return nil, err
	}
	return page(found.Events, found.Next, wireEvent), nil
}

func wireEvent(e audit.Event) client.AuditEvent {
	detail, _ := e.Detail.(json.RawMessage)
	return client.AuditEvent{
		Node: e.Node, Seq: e.Seq, Time: e.Time, Actor: e.Actor, Action: e.Action, Object: e.Object, Detail: detail,
		Prev: hex.EncodeToString(e.Prev[:]), Hash: hex.EncodeToString(e.Hash[:]),
	}
}

func (s *Server) exportAudit(ctx context.Context, in *struct{ EventFilter }) (*outStream, error) {
	f, err := in.filter()
	if err != nil {
		return nil, err
	}
	return &outStream{callOf(ctx).stream(mediaLines, func(w io.Writer) error {
		_, err := s.Audit.Export(ctx, w, f)
		return err
	})}, nil
}
