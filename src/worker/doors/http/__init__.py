"""HTTP as a door: one box, a Pod or RunPod's load balancer; OpenAI's API and RunPod's own."""
