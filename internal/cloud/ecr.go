package cloud

import (
	"context"
	"encoding/base64"
	"errors"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/ecr"
	"github.com/aws/aws-sdk-go-v2/service/ecrpublic"

	"github.com/digestlock/digestlock/internal/credentials"
)

const publicRegion = "us-east-1" // the only one that gives tokens for ECR public

// ecrToken returns "user:password" for the AWS identity of this process: a service account's role, a pod identity, the
// node's, or the environment's.
//
// The SDK is used as it is, not through the ECR credential helper's package, which takes no context and keeps tokens in
// a file.
func ecrToken(ctx context.Context, registry string) (string, error) {
	cfg, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		return "", err
	}
	get := privateToken
	if registry == credentials.ECRPublic {
		get = publicToken
	}
	token, err := get(ctx, cfg, registry)
	if err != nil {
		return "", err
	}
	text, err := base64.StdEncoding.DecodeString(aws.ToString(token))
	if err != nil || !strings.Contains(string(text), ":") {
		return "", errors.New("ECR answered something else than a token")
	}
	return string(text), nil
}

// privateToken asks the registry's own region: ACCOUNT.dkr.ecr.REGION.amazonaws.com, or ecr-fips for ecr.
func privateToken(ctx context.Context, cfg aws.Config, registry string) (*string, error) {
	host := strings.Split(registry, ".")
	out, err := ecr.NewFromConfig(cfg, func(o *ecr.Options) {
		o.Region = host[3]
		if host[2] == "ecr-fips" {
			o.EndpointOptions.UseFIPSEndpoint = aws.FIPSEndpointStateEnabled
		}
	}).GetAuthorizationToken(ctx, nil)
	if err != nil || len(out.AuthorizationData) == 0 {
		return nil, err
	}
	return out.AuthorizationData[0].AuthorizationToken, nil
}

func publicToken(ctx context.Context, cfg aws.Config, _ string) (*string, error) {
	out, err := ecrpublic.NewFromConfig(cfg, func(o *ecrpublic.Options) { o.Region = publicRegion }).GetAuthorizationToken(ctx, nil)
	if err != nil || out.AuthorizationData == nil {
		return nil, err
	}
	return out.AuthorizationData.AuthorizationToken, nil
}
