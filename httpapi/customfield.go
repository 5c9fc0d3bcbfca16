package httpapi

import (
	"context"

	"github.com/go-json-experiment/json/jsontext"

	"accountledger/domain"
)

type patchCustomFieldsInput struct {
	Sub
	Command
	JSON[customFieldsPatch]
}

// customFieldsPatch maps field keys to values; null unsets.
type customFieldsPatch map[string]jsontext.Value

func (s *server) patchCustomFields(ctx context.Context, c *call, in *patchCustomFieldsInput) (*answer, error) {
	return s.execute(ctx, c, in.Command, in.Sub.Sub, domain.SetCustomFields{Values: in.value})
}
