# Serves a model to programs that speak OpenAI's API, and asks it.

lwm serve smollm2-135m-instruct --port 8123 --context 2048 &
server=$!
trap 'kill $server' EXIT
until curl -sf http://127.0.0.1:8123/health > /dev/null; do
    kill -0 $server
    sleep 0.5
done

curl -sf http://127.0.0.1:8123/v1/models
curl -sf http://127.0.0.1:8123/v1/chat/completions -H 'Content-Type: application/json' -d '{
    "model": "smollm2-135m-instruct",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "max_tokens": 12, "temperature": 0
}' | tee answer.json
grep -q Paris answer.json

# For a browser: http://127.0.0.1:8123. For others on your network: --host 0.0.0.0 --api-key ...
