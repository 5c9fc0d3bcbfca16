package httpapi

import (
	"context"

	"github.com/go-json-experiment/json/jsontext"

	"accountledger/domain"
)

func (s *server) customFieldRoutes() {
	handle(s, route{
		method: "PATCH", path: "/v1/accounts/{sub}/custom-fields", name: "patchCustomFields", scope: scopeAccountsWrite, status: 200, answer: domain.Account{},
		summary: "Set and unset custom fields",
		text:    "Sets the given fields and keeps the others; null unsets a field. Values of defined fields are checked against their definition; other keys accept any JSON.",
		example: `{"employee_id":null,"tier":"gold"}`,
		codes:   onChange,
	}, s.patchCustomFields)
}

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
