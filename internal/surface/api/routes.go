package api

import (
	"net/http"

	"chancery/internal/store/access"
)

const (
	get   = http.MethodGet
	post  = http.MethodPost
	put   = http.MethodPut
	patch = http.MethodPatch
	del   = http.MethodDelete
)

func op(method, path, id string, action access.Action, summary string) route {
	return route{method: method, path: path, id: id, action: action, summary: summary}
}

// creates says that success is 201.
func (r route) creates() route { r.status = http.StatusCreated; return r }

// upTo sets the largest body.
func (r route) upTo(octets int64) route { r.body = octets; return r }

// costly says that only so many such calls may run at once.
func (r route) costly() route { r.expensive = true; return r }

// answers says which media types the answer may have.
func (r route) answers(media ...string) route { r.media = media; return r }

// streaming says that the answer is written as it comes.
func (r route) streaming(media ...string) route { r.media, r.streams = media, true; return r }

// routes is the whole surface.
func (s *Server) routes() {
	s.operatorRoutes()
	s.authorityRoutes()
}

func (s *Server) operatorRoutes() {
	register(s, op(get, "/caller", "caller", anyone,
		"Who the node takes the caller for"), s.showCaller)
	register(s, op(get, "/operators", "operator-list", access.ReadPrincipals,
		"List operators"), s.listOperators)
	register(s, op(post, "/operators", "operator-create", access.ManagePrincipals,
		"Make an operator").creates(), s.createOperator)
	register(s, op(get, "/operators/{name}", "operator-show", access.ReadPrincipals,
		"Show an operator"), s.showOperator)
	register(s, op(patch, "/operators/{name}", "operator-change", access.ManagePrincipals,
		"Change, disable or enable an operator"), s.changeOperator)
	register(s, op(del, "/operators/{name}", "operator-remove", access.ManagePrincipals,
		"Remove an operator"), s.removeOperator)
	register(s, op(get, "/operators/{name}/tokens", "token-list", access.ManageOwnTokens,
		"List an operator's tokens"), s.listTokens)
	register(s, op(post, "/operators/{name}/tokens", "token-create", access.ManageOwnTokens,
		"Make a token; its secret is shown once").creates(), s.createToken)
	register(s, op(del, "/tokens/{id}", "token-revoke", access.ManageOwnTokens,
		"End a token"), s.revokeToken)
}

func (s *Server) authorityRoutes() {
	register(s, op(get, "/settings", "settings-show", access.ReadSettings,
		"Read the settings"), s.showSettings)
	register(s, op(patch, "/settings", "settings-change", access.ChangeSettings,
		"Change settings"), s.changeSettings)
	register(s, op(get, "/audit", "audit-search", access.ReadAudit,
		"Search the audit"), s.searchAudit)
	register(s, op(get, "/audit/export", "audit-export", access.ReadAudit,
		"Export the audit, one event a line").streaming(mediaLines).costly(), s.exportAudit)
}
