package setup

import (
	"context"
	"fmt"

	"chancery/internal/fault"
	"chancery/internal/store/token"
	"chancery/internal/upkeep/datadir"
)

// fillToken takes a key's URI apart: what is this node's own goes into node.yaml, and the rest is the key's name.
func (o *Options) fillToken() error {
	if o.TokenHelper != "" {
		o.pkcs11.Helper = o.TokenHelper
	}
	if o.Token == "" {
		return nil
	}
	u, err := token.Parse(o.Token)
	if err != nil {
		return err
	}
	place, err := tokenOf(u)
	if err != nil {
		return err
	}
	if o.Import != nil && o.Import.Key != nil {
		return fault.New(fault.Invalid, "the imported CA has its key in a file, and in a token it would be another one").At("key")
	}
	o.pkcs11.Tokens = []datadir.Token{place}
	u.PINSource, u.ModuleName, u.ModulePath = "", "", ""
	o.Token = u.String()
	if o.Import != nil {
		o.Import.Token = o.Token
	}
	return nil
}

// tokenOf is what a URI says of its token as a node reaches it.
func tokenOf(u *token.URI) (datadir.Token, error) {
	place, ok, err := token.PlaceOf(u)
	switch {
	case err != nil:
		return datadir.Token{}, err
	case !ok:
		return datadir.Token{}, fault.New(fault.Invalid, "the URI of the key names no PKCS #11 library, and there is no node.yaml yet that could").
			WithHint("pkcs11:token=LABEL;object=LABEL?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=/etc/chancery/pin").At("key")
	case u.Token == "" && u.Serial == "":
		return datadir.Token{}, fault.New(fault.Invalid, "the URI of the key names neither token nor serial; slots are renumbered, so a token is found by "+
			"one of these").At("key")
	}
	return datadir.Token{Token: place.Token, Serial: place.Serial, Module: place.Module, PINFile: place.PINFile}, nil
}

// warnOfTokens says what the node that was restored lacks: nothing of a backup leads to a token.
func warnOfTokens(ctx context.Context, s *Services, done *Restored) error {
	found, err := s.Keys.InTokens(ctx)
	for _, k := range found {
		done.Warnings = append(done.Warnings, fmt.Sprintf("the %s key %s lies in a PKCS #11 token and in no backup: this node signs with it once its node.yaml "+
			"names the token under pkcs11, with library and PIN file", k.Purpose, k.Token))
	}
	return err
}

// tellOfTokens says what follows from keys in tokens.
func (s *Services) tellOfTokens(ctx context.Context, result *Result) error {
	found, err := s.Keys.InTokens(ctx)
	if err != nil {
		return err
	}
	for _, k := range found {
		result.Warnings = append(result.Warnings, fmt.Sprintf("the %s key %s lies in its token alone: no backup of the authority holds it, so back the token up "+
			"by its vendor's means", k.Purpose, k.Token))
		extractable, err := s.Keys.Reach(ctx, k)
		if err != nil {
			return err
		}
		if extractable {
			result.Warnings = append(result.Warnings, fmt.Sprintf("the token would give the key %s out (CKA_EXTRACTABLE is true), so somebody may have a "+
				"copy; a key that was made in the token and is not extractable is better", k.Token))
		}
	}
	return nil
}
