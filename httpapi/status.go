package httpapi

import (
	"context"

	"accountledger/domain"
)

func (s *server) statusRoutes() {
	handle(s, route{
		method: "PUT", path: "/v1/accounts/{sub}/status", name: "setStatus", scope: scopeAccountsWrite, status: 200, answer: domain.Account{},
		summary: "Set the status",
		text:    "Sets the status to PENDING, VERIFIED or DECLINED. Setting the current status changes nothing and succeeds.",
		example: `{"userStatus":"DECLINED","reason":"chargeback"}`,
		codes:   codes(onChange, []domain.Code{domain.CodeStatusSystemManaged, domain.CodeInvalidStatusTransition}),
	}, s.setStatus)
}

type setStatusInput struct {
	Sub
	Command
	JSON[newStatus]
}

// newStatus is the body of PUT /v1/accounts/{sub}/status.
type newStatus struct {
	UserStatus domain.Status `json:"userStatus" enum:"PENDING,VERIFIED,DECLINED,COMBINED,DELETED" doc:"The new status."`
	Reason     string        `json:"reason,omitzero" maxLength:"1024" doc:"Free text."`
}

func (s *server) setStatus(ctx context.Context, c *call, in *setStatusInput) (*answer, error) {
	return s.execute(ctx, c, in.Command, in.Sub.Sub, domain.SetStatus{Status: in.value.UserStatus, Reason: in.value.Reason})
}
