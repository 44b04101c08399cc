package api

import (
	"context"
	"fmt"
	"time"

	"chancery/client"
	"chancery/internal/authority/profile"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/store/access"
	"chancery/internal/store/once"
)

func (s *Server) listProfiles(ctx context.Context, _ *none) (*out[client.Page[client.Profile]], error) {
	all, err := s.Profiles.List(ctx)
	if err != nil {
		return nil, err
	}
	return page(all, "", func(v *profile.Version) client.Profile { return wireProfile(v, false) }), nil
}

// newest is the newest version of a profile, retired or not.
func (s *Server) newest(ctx context.Context, name string) (*profile.Version, error) {
	all, err := s.Profiles.History(ctx, name)
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

func (s *Server) showProfile(ctx context.Context, in *named) (*out[client.Profile], error) {
	v, err := s.newest(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	return answer(wireProfile(v, true)), nil
}

func (s *Server) listVersions(ctx context.Context, in *named) (*out[client.Page[client.Profile]], error) {
	all, err := s.Profiles.History(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	return page(all, "", func(v *profile.Version) client.Profile { return wireProfile(v, false) }), nil
}

func (s *Server) showVersion(ctx context.Context, in *struct {
	Name    string `path:"name" maxLength:"255"`
	Version int    `path:"version" minimum:"0" doc:"0 for what is built in"`
}) (*out[client.Profile], error) {
	v, err := s.Profiles.Load(ctx, in.Name, in.Version)
	if err != nil {
		return nil, err
	}
	return answer(wireProfile(v, true)), nil
}

func (s *Server) saveProfile(ctx context.Context, in *namedIn[client.ProfileText]) (*out[client.SavedProfile], error) {
	p, err := cert.ParseProfile([]byte(in.Body.YAML))
	if err != nil {
		return nil, err
	}
	if p.Name != in.Name {
		return nil, fault.New(fault.Invalid, "the text names the profile %q, and the call %q", p.Name, in.Name).At("/yaml")
	}
	saved, err := act(ctx, s, in, func(call once.Call) (profile.Saved, error) {
		base, err := s.base(ctx, in.Name, in.Body.Base)
		if err != nil {
			return profile.Saved{}, err
		}
		v, samples, err := s.Profiles.Save(ctx, access.From(ctx), []byte(in.Body.YAML), base, call)
		if err != nil {
			return profile.Saved{}, err
		}
		return profile.Saved{Number: v.Number, Samples: samples}, nil
	})
	if err != nil {
		return nil, err
	}
	v, err := s.Profiles.Load(ctx, in.Name, saved.Number)
	if err != nil {
		return nil, err
	}
	return answer(client.SavedProfile{Profile: wireProfile(v, true), Samples: wireSamples(saved.Samples)}), nil
}

// base is the version that a change was made from.
func (s *Server) base(ctx context.Context, name string, given *int64) (int, error) {
	if given != nil {
		return int(*given), nil
	}
	v, err := s.newest(ctx, name)
	if fault.Is(err, fault.NotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return v.Number, nil
}

func (s *Server) retireProfile(ctx context.Context, in *namedAct) (*out[client.Profile], error) {
	saved, err := act(ctx, s, in, func(call once.Call) (profile.Saved, error) {
		v, err := s.Profiles.Retire(ctx, access.From(ctx), in.Name, call)
		if err != nil {
			return profile.Saved{}, err
		}
		return profile.Saved{Number: v.Number}, nil
	})
	if err != nil {
		return nil, err
	}
	v, err := s.Profiles.Load(ctx, in.Name, saved.Number)
	if err != nil {
		return nil, err
	}
	return answer(wireProfile(v, true)), nil
}

func (s *Server) checkProfile(_ context.Context, in *in[client.ProfileText]) (*out[client.ProfileCheck], error) {
	p, err := cert.ParseProfile([]byte(in.Body.YAML))
	if err != nil {
		return nil, err
	}
	samples, err := profile.Samples(p, time.Now())
	if err != nil {
		return nil, err
	}
	return answer(client.ProfileCheck{Name: p.Name, Samples: wireSamples(samples)}), nil
}

func (s *Server) sampleProfile(ctx context.Context, in *named) (*out[client.ProfileCheck], error) {
	newest, err := s.newest(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	v, samples, err := s.Profiles.Show(ctx, in.Name, newest.Number)
	if err != nil {
		return nil, err
	}
	return answer(client.ProfileCheck{Name: v.Name, Version: int64(v.Number), Samples: wireSamples(samples)}), nil
}

func wireProfile(v *profile.Version, whole bool) client.Profile {
	out := client.Profile{
		Name: v.Name, Version: int64(v.Number), Description: v.Description, Retired: v.Retired, SavedAt: v.SavedAt, SavedBy: v.SavedBy,
	}
	if whole {
		out.YAML = v.Document
	}
	return out
}

func wireSamples(samples []profile.Sample) []client.ProfileSample {
	out := make([]client.ProfileSample, len(samples))
	for i, sample := range samples {
		out[i] = client.ProfileSample{Algorithm: sample.Algorithm, PEM: string(encodePEM("CERTIFICATE", sample.DER)), Warnings: sample.Warnings}
		for _, f := range sample.Findings {
			level := "error"
			if f.Warning {
				level = "warning"
			}
			out[i].Findings = append(out[i].Findings, fmt.Sprintf("%s: %s (%s, %s)", level, f.Text, f.Lint, f.Source))
		}
	}
	return out
}
