package api

import (
	"slices"
	"strconv"
	"strings"

	"chancery/internal/fault"
	"github.com/danielgtaylor/huma/v2"
)

// describeMedia documents an answer that huma does not encode.
func (s *Server) describeMedia(op *huma.Operation, r route) {
	content := map[string]*huma.MediaType{}
	for _, media := range r.media {
		schema := &huma.Schema{Type: "string"}
		if media == mediaJSON {
			content[media] = &huma.MediaType{Schema: s.huma.OpenAPI().Components.Schemas.Schema(r.json, true, r.json.Name())}
			continue
		}
		if !strings.HasPrefix(media, "text/") && media != mediaPEM && media != mediaLines {
			schema.Format = "binary"
		}
		content[media] = &huma.MediaType{Schema: schema}
	}
	op.Responses["200"] = &huma.Response{Description: "OK", Content: content}
}

// The media types of answers.
const (
	mediaJSON   = "application/json"
	mediaPEM    = "application/x-pem-file"
	mediaChain  = "application/pem-certificate-chain" // RFC 8555 §9.1
	mediaCert   = "application/pkix-cert"             // RFC 2585 §4.1
	mediaCRL    = "application/pkix-crl"              // RFC 2585 §4.2
	mediaLines  = "application/jsonl"
	mediaCSV    = "text/csv"
	mediaBinary = "application/octet-stream"
)

// negotiate picks the offer that an Accept header likes best (RFC 9110 §12.5.1); the first where it likes all alike.
func negotiate(accept string, offers ...string) (string, error) {
	if accept == "" {
		return offers[0], nil
	}
	best, bestQ := "", 0.0
	for _, offer := range offers {
		if q := quality(accept, offer); q > bestQ {
			best, bestQ = offer, q
		}
	}
	if best == "" {
		return "", fault.New(fault.Invalid, "Accept %q names none of %s", accept, strings.Join(offers, ", "))
	}
	return best, nil
}

// quality is the weight of the most specific range of an Accept header that offer falls in.
func quality(accept, offer string) float64 {
	kind, _, _ := strings.Cut(offer, "/")
	ranges := []string{"*/*", kind + "/*", offer}
	best, q := -1, 0.0
	for part := range strings.SplitSeq(accept, ",") {
		name, parameters, _ := strings.Cut(part, ";")
		i := slices.Index(ranges, strings.ToLower(strings.TrimSpace(name)))
		if i <= best {
			continue
		}
		best, q = i, weight(parameters)
	}
	return q
}

// weight reads the q parameter of a media range; 1 where there is none, 0 where it is no number.
func weight(parameters string) float64 {
	for p := range strings.SplitSeq(parameters, ";") {
		if value, ok := strings.CutPrefix(strings.ToLower(strings.TrimSpace(p)), "q="); ok {
			q, err := strconv.ParseFloat(value, 64)
			if err != nil || q < 0 || q > 1 {
				return 0
			}
			return q
		}
	}
	return 1
}
