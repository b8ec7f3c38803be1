"""What both HTTP services are at their edge: problem documents, request ids, bounded bodies, the shape of their OpenAPI."""
