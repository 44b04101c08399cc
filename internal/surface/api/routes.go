package api

import (
	"net/http"
	"reflect"

	"chancery/client"
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

// negotiates says that the answer is a T in JSON, or one of the media types, as the caller likes.
func negotiates[T any](r route, media ...string) route {
	r.media, r.json = append([]string{mediaJSON}, media...), reflect.TypeFor[T]()
	return r
}

// answers says which media type the answer has.
func (r route) answers(media string) route { r.media = []string{media}; return r }

// long says that the answer may be long, so that each write has a deadline and not the whole.
func (r route) long() route { r.streams = true; return r }

// streaming says that the answer is written as it comes.
func (r route) streaming(media ...string) route { r.media, r.streams = media, true; return r }

// unlessKnown says that the answer is 304 where the caller knows it.
func (r route) unlessKnown() route { r.conditional = true; return r }

// late says that a certificate that has ended proves its owner for a while.
func (r route) late() route { r.lateRenewal = true; return r }

// signing says that it needs the key of an issuer, or makes one.
func (r route) signing() route { r.signs = true; return r }

// routes is the whole surface.
func (s *Server) routes() {
	s.certificateRoutes()
	s.issuerRoutes()
	s.profileRoutes()
	s.hostRoutes()
	s.rolloutRoutes()
	s.trustRoutes()
	s.operatorRoutes()
	s.cloneRoutes()
	s.authorityRoutes()
}

func (s *Server) certificateRoutes() {
	register(s, op(post, "/certificates", "certificate-issue", access.IssueCertificate,
		"Issue a certificate").signing().creates().upTo(csrBody).plainly(s.plainIssue), s.issue)
	register(s, op(get, "/certificates", "certificate-search", access.ReadCertificates,
		"Search the inventory"), s.searchCertificates)
	register(s, op(get, "/certificates/export", "certificate-export", access.ReadCertificates,
		"Export the inventory").streaming(mediaCSV, mediaLines).costly(), s.exportCertificates)
	register(s, negotiates[client.Certificate](op(get, "/certificates/{serial}", "certificate-show", access.ReadCertificates,
		"Show a certificate"), mediaCert, mediaPEM, mediaChain), s.showCertificate)
	register(s, op(post, "/certificates/{serial}/renew", "certificate-renew", access.IssueCertificate,
		"Renew: the same key, a new validity").signing().creates(), s.renewCertificate)
	register(s, op(post, "/certificates/{serial}/rekey", "certificate-rekey", access.IssueCertificate,
		"Re-key: the same names, a new key").signing().creates().upTo(csrBody), s.rekeyCertificate)
	register(s, op(post, "/certificates/{serial}/revoke", "certificate-revoke", access.RevokeCertificate,
		"Revoke for good"), s.revokeCertificate)
	register(s, op(post, "/certificates/{serial}/hold", "certificate-hold", access.RevokeCertificate,
		"Put on hold"), s.holdCertificate)
	register(s, op(post, "/certificates/{serial}/release", "certificate-release", access.RevokeCertificate,
		"End a hold"), s.releaseCertificate)
	register(s, op(post, "/certificates/{serial}/prove", "certificate-prove", access.ProveRevocation,
		"Have hosts try a revoked certificate upon their own consumers").creates(), s.proveRevoked)
	register(s, op(get, "/certificates/{serial}/proof", "certificate-proof", access.ReadHosts,
		"Show the newest proof of a certificate's revocation"), s.lastProof)
	register(s, op(get, "/proofs/{id}", "proof-show", access.ReadHosts,
		"Show a proof of revocation"), s.showProof)
	register(s, op(post, "/requests", "request-submit", access.SubmitRequest,
		"Ask for a certificate; 202 where an officer must decide").signing().creates().upTo(csrBody), s.submit)
	register(s, op(get, "/requests", "request-list", access.ReadRequests,
		"List requests, newest first"), s.listRequests)
	register(s, op(get, "/requests/{id}", "request-show", access.ReadRequests,
		"Show a request"), s.showRequest)
	register(s, op(get, "/requests/{id}/certificate", "request-retrieve", access.ReadRequests,
		"Retrieve the certificate of a request"), s.retrieve)
	register(s, op(post, "/requests/{id}/assign", "request-assign", access.DecideRequest,
		"Assign a request to an officer"), s.assignRequest)
	register(s, op(post, "/requests/{id}/approve", "request-approve", access.DecideRequest,
		"Approve a request, and issue its certificate").signing(), s.approveRequest)
	register(s, op(post, "/requests/{id}/reject", "request-reject", access.DecideRequest,
		"Reject a request"), s.rejectRequest)
	register(s, op(post, "/requests/{id}/cancel", "request-cancel", access.SubmitRequest,
		"Take one's own request back"), s.cancelRequest)
}

func (s *Server) issuerRoutes() {
	register(s, op(get, "/issuers", "issuer-list", access.ReadIssuers,
		"List issuers"), s.listIssuers)
	register(s, op(post, "/issuers", "issuer-create", access.ManageIssuers,
		"Make an issuer").signing().creates().upTo(csrBody).costly(), s.createIssuer)
	register(s, op(get, "/issuers/{issuer}", "issuer-show", access.ReadIssuers,
		"Show an issuer"), s.showIssuer)
	register(s, op(get, "/issuers/{issuer}/chain", "issuer-chain", access.ReadIssuers,
		"The issuer's certificate and those above it").answers(mediaPEM), s.showChain)
	register(s, op(get, "/issuers/{issuer}/csr", "issuer-csr", access.ReadIssuers,
		"The request of a pending issuer").answers(mediaPEM), s.showCSR)
	register(s, op(post, "/issuers/{issuer}/certificate", "issuer-import", access.ManageIssuers,
		"Bring in what an outside root signed").signing().upTo(csrBody), s.importIssuerCertificate)
	register(s, op(get, "/issuers/{issuer}/renewal-request", "issuer-renewal-request", access.ManageIssuers,
		"A request for another certificate of the issuer's key, for an outside root").answers(mediaPEM).signing(), s.showRenewalRequest)
	register(s, op(post, "/issuers/{issuer}/renew", "issuer-renew", access.ManageIssuers,
		"Give the issuer another certificate for its key, which lasts longer").signing().upTo(csrBody).costly(), s.renewIssuer)
	register(s, op(post, "/issuers/{issuer}/default", "issuer-default", access.ManageIssuers,
		"Make it the default of its pool"), s.setDefaultIssuer)
	register(s, op(put, "/issuers/{issuer}/crl-mode", "issuer-crl-mode", access.ManageIssuers,
		"Choose which CRLs it signs"), s.setCRLMode)
	register(s, op(post, "/issuers/{issuer}/retire", "issuer-retire", access.ManageIssuers,
		"End its issuing"), s.retireIssuer)
	register(s, op(get, "/issuers/{issuer}/crls", "crl-list", access.ReadIssuers,
		"List its CRLs, newest first"), s.listCRLs)
	register(s, op(post, "/issuers/{issuer}/crls", "crl-issue", access.IssueCRL,
		"Sign its CRL now").upTo(csrBody), s.issueCRL)
	register(s, op(get, "/issuers/{issuer}/crls/draft", "crl-draft", access.IssueCRL,
		"What the next CRL of an offline key has to say"), s.draftCRL)
	register(s, op(post, "/issuers/{issuer}/crls/upload", "crl-upload", access.IssueCRL,
		"Bring in a CRL that was signed elsewhere").upTo(uploadBody), s.uploadCRL)
	register(s, negotiates[client.CRL](op(get, "/issuers/{issuer}/crls/{number}", "crl-show", access.ReadIssuers,
		"Show or download a CRL"), mediaCRL, mediaPEM).long(), s.showCRL)
	register(s, op(get, "/pools", "pool-list", access.ReadPools,
		"List pools"), s.listPools)
	register(s, op(post, "/pools", "pool-add", access.ManagePools,
		"Begin a pool").signing().creates().costly(), s.addPool)
	register(s, op(get, "/pools/{name}", "pool-show", access.ReadPools,
		"Show a pool"), s.showPool)
	register(s, op(post, "/pools/{name}/root", "pool-complete", access.ManagePools,
		"Bring in what the pool's root signed").signing().upTo(csrBody), s.completePool)
}

func (s *Server) hostRoutes() {
	register(s, op(get, "/hosts", "host-list", access.ReadHosts,
		"List hosts, those with a problem first"), s.listHosts)
	register(s, op(post, "/hosts", "host-add", access.ManageHosts,
		"Add a host; its join token is shown once").creates().upTo(csrBody), s.addHost)
	register(s, op(get, "/hosts/{name}", "host-show", access.ReadHosts,
		"Show a host"), s.showHost)
	register(s, op(patch, "/hosts/{name}", "host-set", access.ManageHosts,
		"Change a host's names, addresses or placements").upTo(csrBody), s.setHost)
	register(s, op(del, "/hosts/{name}", "host-remove", access.ManageHosts,
		"Remove a host, and revoke what it holds"), s.removeHost)
	register(s, op(post, "/hosts/{name}/replace", "host-replace", access.ManageHosts,
		"Give a host's name and placements to another machine; its join token is shown once").creates(), s.replaceHost)
	register(s, op(post, "/hosts/{name}/token", "host-token", access.ManageHosts,
		"Make another join token for a host that has not joined").creates(), s.newHostToken)
	register(s, op(get, "/join/roots", "join-roots", stranger,
		"The roots of identities; who joins takes the one whose SHA-256 its token names").answers(mediaPEM), s.joinRoots)
	register(s, op(post, "/join", "join", stranger,
		"Redeem a join token for an identity").signing().creates(), s.join)
	register(s, op(post, "/agent/identity", "agent-identity", access.ActAsHost,
		"Renew an agent's identity, up to 30 days after its end").signing().creates().late(), s.renewAgentIdentity)
	register(s, op(get, "/agent/desired", "agent-desired", access.ActAsHost,
		"What the calling host shall hold; waits for a change from what If-None-Match names").long().unlessKnown(), s.showDesired)
	register(s, op(post, "/agent/report", "agent-report", access.ActAsHost,
		"Report what the calling host holds and serves").upTo(reportBody), s.report)
	register(s, op(post, "/agent/proofs/{id}/twin", "agent-proof-twin", access.ActAsHost,
		"Get what a proof of revocation is tried with: a revoked twin, or a control").signing().creates(), s.issueForProof)
	register(s, op(post, "/agent/proofs/{id}", "agent-proof-report", access.ActAsHost,
		"Report what the calling host saw of a proof").upTo(csrBody), s.reportProof)
}

func (s *Server) profileRoutes() {
	register(s, op(get, "/profiles", "profile-list", access.ReadProfiles,
		"List profiles"), s.listProfiles)
	register(s, op(post, "/profiles/check", "profile-check", access.ReadProfiles,
		"What a text would issue").upTo(csrBody).costly(), s.checkProfile)
	register(s, op(get, "/profiles/{name}", "profile-show", access.ReadProfiles,
		"Show a profile"), s.showProfile)
	register(s, op(put, "/profiles/{name}", "profile-save", access.ManageProfiles,
		"Save a new version").upTo(csrBody).costly(), s.saveProfile)
	register(s, op(get, "/profiles/{name}/versions", "profile-versions", access.ReadProfiles,
		"List a profile's versions, newest first"), s.listVersions)
	register(s, op(get, "/profiles/{name}/versions/{version}", "profile-version", access.ReadProfiles,
		"Show one version"), s.showVersion)
	register(s, op(get, "/profiles/{name}/sample", "profile-sample", access.ReadProfiles,
		"What a profile issues").costly(), s.sampleProfile)
	register(s, op(post, "/profiles/{name}/retire", "profile-retire", access.ManageProfiles,
		"End a profile"), s.retireProfile)
}

func (s *Server) operatorRoutes() {
	register(s, op(get, "/caller", "caller", anyone,
		"Who the node takes the caller for"), s.showCaller)
	register(s, op(post, "/caller/identity", "caller-enrol", anyone,
		"Renew the caller's identity").signing().creates(), s.enrolCaller)
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
	register(s, op(post, "/operators/{name}/identity", "operator-enrol", access.ManagePrincipals,
		"Give an operator an identity").signing().creates(), s.enrol)
	register(s, op(get, "/operators/{name}/tokens", "token-list", access.ManageOwnTokens,
		"List an operator's tokens"), s.listTokens)
	register(s, op(post, "/operators/{name}/tokens", "token-create", access.ManageOwnTokens,
		"Make a token; its secret is shown once").creates(), s.createToken)
	register(s, op(del, "/tokens/{id}", "token-revoke", access.ManageOwnTokens,
		"End a token"), s.revokeToken)
}

func (s *Server) authorityRoutes() {
	register(s, op(get, "/status", "status", access.ReadStatus,
		"How the authority does"), s.showStatus)
	register(s, op(get, "/settings", "settings-show", access.ReadSettings,
		"Read the settings"), s.showSettings)
	register(s, op(patch, "/settings", "settings-change", access.ChangeSettings,
		"Change settings"), s.changeSettings)
	register(s, op(get, "/audit", "audit-search", access.ReadAudit,
		"Search the audit"), s.searchAudit)
	register(s, op(get, "/audit/export", "audit-export", access.ReadAudit,
		"Export the audit, one event a line").streaming(mediaLines).costly(), s.exportAudit)
	register(s, op(post, "/audit/checkpoints", "checkpoint-sign", access.SignCheckpoint,
		"Sign a checkpoint of the audit now").signing().creates(), s.signCheckpoint)
	register(s, op(get, "/audit/checkpoints/{number}", "checkpoint-show", access.ReadAudit,
		"Fetch a checkpoint, to keep it elsewhere"), s.showCheckpoint)
	register(s, op(get, "/doctor", "doctor", access.CheckStore,
		"Findings about keys, files and the database").streaming(mediaLines).costly(), s.doctor)
	register(s, op(post, "/verify", "verify", access.CheckStore,
		"Check the whole store as an outsider would").streaming(mediaLines).upTo(csrBody).costly(), s.verify)
	register(s, op(post, "/backup", "backup", access.TakeBackup,
		"The whole authority, encrypted to the recovery recipient").streaming(mediaBinary).costly(), s.backup)
}
