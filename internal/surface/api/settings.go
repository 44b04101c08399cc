package api

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"

	"chancery/client"
	"chancery/internal/store/access"
	"chancery/internal/store/once"
	"chancery/internal/store/settings"
	"chancery/internal/surface/problem"
)

type outSettings struct {
	ETag string `header:"ETag"`
	Body client.Settings
}

type settingsChange struct {
	Keyed
	IfMatch string `header:"If-Match" maxLength:"64" doc:"the version that the change is made from"`
	Body    client.SettingsChange
}

func (s *Server) showSettings(ctx context.Context, _ *none) (*outSettings, error) {
	set, err := s.Settings.Get(ctx)
	if err != nil {
		return nil, err
	}
	return wireSettings(set)
}

func (s *Server) changeSettings(ctx context.Context, in *settingsChange) (*outSettings, error) {
	stored, err := act(ctx, s, in, func(call once.Call) (settings.Versioned, error) {
		set, err := s.change(ctx, in, call)
		if err != nil {
			return settings.Versioned{}, err
		}
		return settings.Versioned{Version: set.Version, Settings: *set}, nil
	})
	if err != nil {
		return nil, err
	}
	return wireSettings(stored.Whole())
}

func (s *Server) change(ctx context.Context, in *settingsChange, call once.Call) (*settings.Settings, error) {
	current, err := s.Settings.Get(ctx)
	if err != nil {
		return nil, err
	}
	fields := make([]settings.Field, len(in.Body.Set))
	for i, f := range in.Body.Set {
		fields[i] = settings.Field{Path: f.Path, Value: f.Value}
	}
	next, err := current.WithAll(fields)
	if err != nil {
		return nil, err
	}
	if !reflect.DeepEqual(next, current) {
		if err := problem.Match(in.IfMatch, settingsTag(current)); err != nil {
			return nil, err
		}
	} // Else what is asked for is so already, which a call must hear whatever version it was made from (RFC 9110 §13.1.1).
	return s.Settings.Set(ctx, access.From(ctx).Actor(), *next, call)
}

func settingsTag(s *settings.Settings) string { return problem.ETag(strconv.FormatInt(s.Version, 10)) }

func wireSettings(s *settings.Settings) (*outSettings, error) {
	document, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode settings: %w", err)
	}
	fields, err := s.Fields()
	if err != nil {
		return nil, err
	}
	out := &outSettings{ETag: settingsTag(s), Body: client.Settings{Document: document, Fields: make([]client.Setting, len(fields))}}
	for i, f := range fields {
		out.Body.Fields[i] = client.Setting{Path: f.Path, Value: f.Value}
	}
	return out, nil
}
